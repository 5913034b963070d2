"""A ViT with TrOCR's decoder equals transformers' `VisionEncoderDecoderModel`, in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop, tree, warm_start
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.interop import described, encoder_decoder, hugging_face, table, writing
from vlm_jax.interop.imported import template
from vlm_jax.models.captioner import Captioner, TextDecoder
from vlm_jax.models.vit import ViT

from ..parity import peers
from . import peer_models as small
from .peer_models import BATCH, IMAGE, LENGTH, VISION, VOCAB, WIDTH, assert_close, assert_gradients

DECODER = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 40}
DECODER |= {"vocab_size": VOCAB, "max_position_embeddings": LENGTH, "cross_attention_hidden_size": WIDTH}


def build(**changes):
    t = peers.transformers()
    encoder = t.ViTConfig(**VISION, qkv_bias=False)
    decoder = t.TrOCRConfig(**DECODER | changes, is_decoder=True, add_cross_attention=True)
    return t.VisionEncoderDecoderModel(t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))


def inputs():
    image, _ = small.inputs()
    return image, np.random.default_rng(3).integers(3, VOCAB, (BATCH, LENGTH - 2)).astype(np.int32)


@pytest.mark.parametrize("embed_norm", [True, False])
def test_logits_and_gradients(embed_norm, tmp_path):
    torch = peers.torch()
    theirs = small.randomise(build(layernorm_embedding=embed_norm))
    found = interop.source(small.save(theirs, tmp_path / "weights"))
    assert found.family == "vision-encoder-decoder"
    model, params = configs.build(found.model), jax.tree.map(jnp.asarray, found.params())
    image, text = inputs()
    out = theirs(pixel_values=small.channels_first(image), decoder_input_ids=torch.tensor(text).long())
    weight = np.random.default_rng(4).normal(size=out.logits.shape).astype(np.float32)
    (out.logits * torch.tensor(weight)).sum().backward()
    expected = small.our_gradients(theirs, tmp_path / "gradients")

    def objective(params):
        variables = {"params": params}
        tokens = model.encode_image(variables, image)[1]["tokens"]
        logits = model.decode(variables, tokens, text) @ model.head(variables).T
        return (logits * weight).sum(), (tokens, logits)

    (_, (tokens, logits)), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(tokens, out.encoder_last_hidden_state.detach(), "tokens")
    assert_close(logits, out.logits.detach(), "logits")
    assert_gradients(gradients, expected)


def test_import_and_export(tmp_path):
    theirs = small.randomise(build())
    found = interop.source(small.save(theirs, tmp_path / "theirs"))
    model, half = configs.build(found.model), (0.5, 0.5, 0.5)
    folder = writing.to_hugging_face(model, found.params(), ImageTransform(size=IMAGE), None, half, half)
    writing.save(folder, tmp_path / "ours")
    again = peers.transformers().AutoModelForImageTextToText.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    image, text = inputs()
    arguments = {"pixel_values": small.channels_first(image), "decoder_input_ids": peers.torch().tensor(text).long()}
    assert peers.torch().equal(theirs(**arguments).logits, again(**arguments).logits)
    assert configs.build(interop.source(tmp_path / "ours").model) == model


def test_published_size_by_names_and_shapes():
    t, torch = peers.transformers(), peers.torch()
    decoder = {"d_model": 1024, "cross_attention_hidden_size": 768}
    model = Captioner(
        image=ViT(size="B", image_size=384, pool="cls", qkv_bias=False, scan=True, activation="gelu", norm_eps=1e-12),
        decoder=TextDecoder(
            size="L", depth=12, vocab_size=50_265, length=512, context_width=768, norm="post", embed_norm=True,
            tied=True, activation="gelu", norm_eps=1e-5, scan=True, pad_id=1, eos_id=2,
        ),
    )  # fmt: skip
    config, names = described.describe(model)
    with torch.device("meta"):
        encoder = t.ViTConfig(image_size=384, qkv_bias=False)
        theirs = t.VisionEncoderDecoderModel(
            t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, t.TrOCRConfig(**decoder))
        )
    wanted = {n: tuple(p.shape) for n, p in theirs.named_parameters() if "pooler" not in n}
    assert sorted(table.wanted(names, template(model)).values()) == sorted(wanted.values())
    assert config["decoder"]["d_model"] == 1024 and config["encoder"]["image_size"] == 384


CONFIG = {"encoder": VISION | {"model_type": "vit"}, "decoder": DECODER | {"model_type": "trocr"}}


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("decoder", {"model_type": "gpt2"}, "part of type 'gpt2' is not supported; only a vit with a trocr decoder"),
        ("encoder", {"model_type": "deit"}, "part of type 'deit' is not supported"),
        ("decoder", {"scale_embedding": True}, "scale_embedding=True is not supported; only False is"),
        ("decoder", {"use_learned_position_embeddings": False}, "use_learned_position_embeddings=False"),
        ("decoder", {"cross_attention_hidden_size": None}, "projection of the encoder's 32 features to 24"),
        ("decoder", {"activation_function": "relu"}, "activation_function='relu' is not supported; known are gelu"),
    ],
)
def test_what_is_not_supported_is_named(part, changes, message):
    config = CONFIG | {part: CONFIG[part] | changes}
    with pytest.raises(UserError, match=message):
        encoder_decoder.model(config, "config", hugging_face._vit)


def test_what_it_cannot_express_is_named():
    model = Captioner(decoder=TextDecoder(depth=1))
    with pytest.raises(UserError, match=r"TrOCRForCausalLM cannot express decoder\.norm='pre'; it has 'post'"):
        described.describe(model)


def test_it_is_trained_on_whole_or_from_its_image_tower(tmp_path):
    whole = interop.source(small.save(small.randomise(build()), tmp_path / "whole"))
    tower = interop.source(small.save(small.randomise(small.vit(qkv_bias=False)), tmp_path / "tower"))
    model = configs.build(whole.model)
    live = jax.tree.map(jnp.zeros_like, whole.params())
    for source, name in ((whole, "whole"), (tower, "tower")):
        params = warm_start.load(str(tmp_path / name), model, pytest.fail).params
        found = tree.flatten(warm_start.fit(params, live, {}))
        wanted = tree.flatten(source.params() if name == "whole" else {"image": source.params()})
        for key, leaf in found.items():
            np.testing.assert_array_equal(leaf, wanted.get(key, 0), err_msg=key)
