"""CoCa equals open_clip's: embeddings, tokens of both towers, logits of captions, both losses and their gradients."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax
from vlm_jax import config as configs
from vlm_jax import interop, losses
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.interop import open_clip_coca, table, writing
from vlm_jax.interop.imported import complete, template
from vlm_jax.models.coca import CoCa, ImageTower, TextTower

from ..parity import peers
from . import open_clip_models as small
from . import peer_models
from .open_clip_models import CLIP, TEXT
from .peer_models import BATCH, HEADS, IMAGE, LENGTH, VOCAB, WIDTH, assert_close, assert_gradients, inputs

DIM = 24
TEXT_COCA = TEXT | {"width": DIM, "heads": 2, "embed_cls": True, "output_tokens": True}
POOLED = CLIP["vision_cfg"] | {"attentional_pool": True, "output_tokens": True, "attn_pooler_queries": 6}
COCA = {
    "embed_dim": DIM,
    "custom_text": True,
    "vision_cfg": POOLED | {"attn_pooler_heads": 4},
    "text_cfg": TEXT_COCA,
    "multimodal_cfg": {"context_length": LENGTH, "vocab_size": VOCAB, "width": DIM, "heads": 3, "layers": 2},
}


def wide(pooler):
    """With towers of one width, as open_clip's other poolers take them."""
    return COCA | {
        "embed_dim": WIDTH,
        "vision_cfg": POOLED | {"attentional_pool": pooler},
        "text_cfg": TEXT_COCA | {"width": WIDTH, "heads": HEADS},
        "multimodal_cfg": COCA["multimodal_cfg"] | {"width": WIDTH, "heads": HEADS},
    }


CONFIGS = {
    "first": COCA,
    "cascade": wide("cascade"),
    "parallel": wide("parallel"),
    "quick_gelu": COCA | {"quick_gelu": True},
}


def build(config):
    library = small.library()
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = library.coca_model.CoCa(**arguments)
    peers.torch().nn.init.zeros_(model.text_decoder.text_projection)  # it is left as memory happens to be
    return model


def captions():
    """Texts padded with zeros; one fills its row."""
    image, text = inputs()
    ends = (LENGTH, 5, 8)
    return image, np.where(np.arange(LENGTH) < np.array(ends)[:, None], text, 0)


QUICK = [("cascade", False)]
FULL = [("first", True), ("first", False), ("parallel", False), ("quick_gelu", False)]
FULL = [pytest.param(*case, marks=pytest.mark.full) for case in FULL]


@pytest.mark.parametrize(("name", "correct"), QUICK + FULL)
def test_equals_open_clip(name, correct, tmp_path):
    config, torch = CONFIGS[name], peers.torch()
    theirs = peer_models.randomise(build(config))
    theirs.text.correct_cls_mask = correct  # which its configs cannot say
    found = interop.source(small.save(theirs, config, tmp_path / "weights"))
    model, params = configs.build(found.model), jax.tree.map(jnp.asarray, found.params())
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, correct_cls_mask=correct))
    image, text = captions()

    pixels, ids = peer_models.channels_first(image), torch.tensor(text).long()
    z_image, image_tokens = theirs._encode_image(pixels)
    z_text, text_tokens = theirs._encode_text(ids)
    z_image = z_image.reshape(BATCH, -1)  # [batch, 1, dim] where the contrastive query has a pooler of its own
    logits = theirs(pixels, ids)["logits"]
    loss = small.library().loss.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    parts = loss(z_image, z_text, logits, ids[:, 1:], theirs.logit_scale.exp())
    sum(parts).backward()
    expected = small.our_gradients(theirs, config, tmp_path / "gradients")

    def objective(params):
        variables = {"params": params}
        z_image, aux = model.encode_image(variables, image)
        z_text, text_aux = model.encode_text(variables, text)
        hidden = model.decode(variables, aux["tokens"], text_aux["tokens"][:, :-1])
        head = model.head(variables)
        contrast = losses.infonce_loss(z_image, z_text, model.scale(variables))
        labels = jnp.where(text[:, 1:] == 0, -1, text[:, 1:]).reshape(-1)
        caption = losses.cross_entropy(hidden.reshape(-1, hidden.shape[-1]), head, labels)
        outputs = {
            "image_features": z_image,
            "text_features": z_text,
            "image_tokens": aux["tokens"],
            "text_tokens": text_aux["tokens"],
            "logits": hidden @ head.T,
            "contrastive_loss": contrast,
            "caption_loss": 2 * caption,
        }
        return contrast + 2 * caption, outputs

    (_, ours), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    wanted = {"image_features": z_image, "text_features": z_text, "image_tokens": image_tokens}
    wanted |= {"text_tokens": text_tokens, "logits": logits, "contrastive_loss": parts[0], "caption_loss": parts[1]}
    assert ours.keys() == wanted.keys()
    for key, value in wanted.items():
        assert_close(ours[key], value.detach(), key)
    similarities = z_text.detach().numpy() @ z_image.detach().numpy().T * float(theirs.logit_scale.exp())
    assert_gradients(gradients, expected, terms=np.abs(similarities).sum(axis=1).mean())


@pytest.mark.parametrize("name", CONFIGS)
def test_import_and_export(name, tmp_path):
    torch = peers.torch()
    config = CONFIGS[name]
    theirs = peer_models.randomise(build(config))
    found = interop.source(small.save(theirs, config, tmp_path / "theirs"))
    half = (0.5, 0.5, 0.5)
    model = configs.build(found.model)
    writing.save(
        writing.to_open_clip(model, found.params(), ImageTransform(size=IMAGE), None, half, half), tmp_path / "ours"
    )
    written = json.loads((tmp_path / "ours" / "open_clip_config.json").read_text())["model_cfg"]
    again, _, _ = small.library().create_model_and_transforms(f"local-dir:{tmp_path / 'ours'}")
    assert type(again) is type(theirs)
    state = again.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, state[key]), key
    image, text = captions()
    arguments = peer_models.channels_first(image), torch.tensor(text).long()
    for key, value in theirs(*arguments).items():
        assert torch.equal(value, again.eval()(*arguments)[key]), key
    assert configs.build(complete(open_clip_coca.model(written, "ours"))) == model


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_published_sizes_by_names_and_shapes(name):
    library, torch = small.library(), peers.torch()
    node = complete(open_clip_coca.model(json.loads(json.dumps(library.get_model_config(name))), name))
    wanted = table.wanted(open_clip_coca.table(node), template(configs.build(node)))
    with torch.device("meta"):
        theirs = library.create_model(name, pretrained=None, device="meta").state_dict()
    assert wanted == {n: tuple(value.shape) for n, value in theirs.items()}
    assert not node.text.correct_cls_mask


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_cfg", {"attentional_pool": False}, "CoCa without an attentional pooler is not supported"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_224"}, "CoCa with a tower of timm is not supported"),
        ("text_cfg", {"embed_cls": False}, "embed_cls=False is not supported; only True is"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name='roberta-base' is not supported"),
        ("multimodal_cfg", {"ls_init_value": 0.1}, "ls_init_value=0.1 is not supported"),
    ],
)
def test_what_is_not_supported_is_named(part, changes, message):
    with pytest.raises(UserError, match=message):
        open_clip_coca.model(COCA | {part: COCA[part] | changes}, "config")


def test_a_loaded_folder_embeds_images_and_texts(tmp_path):
    torch = peers.torch()
    theirs = peer_models.randomise(build(COCA))
    loaded = vlm_jax.load(small.save(theirs, COCA, tmp_path / "weights"))
    image, text = captions()
    assert loaded.family == "coca"
    with torch.no_grad():
        wanted = theirs(peer_models.channels_first(image), torch.tensor(text).long())
    assert_close(loaded.encode_image(image, preprocessed=True), wanted["image_features"], "image_features")
    assert_close(loaded.encode_text(text), wanted["text_features"], "text_features")


def test_the_right_mask_is_not_written():
    model = CoCa(text=TextTower(width=512, eos_id=1), image=ImageTower(pre_norm=True, patch_bias=False))
    with pytest.raises(UserError, match=r"cannot express text\.correct_cls_mask=True; it has False"):
        open_clip_coca.describe(model)
