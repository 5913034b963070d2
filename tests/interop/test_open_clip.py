"""Imported models equal open_clip's, outputs and gradients, on small random models in f32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.data.image import ImageTransform
from vlm_jax.interop import writing

from ..parity import peers
from . import open_clip_models as small
from . import peer_models
from .open_clip_models import CLIP, SIGLIP, timm_tower  # noqa: F401
from .peer_models import BATCH, assert_close, assert_gradients, inputs

WEIGHT = np.random.default_rng(1).uniform(size=(BATCH, BATCH)).astype(np.float32)


def compare(config, folder, file="open_clip_model.safetensors"):
    """Embeddings, logits, and the gradient of a weighted sum of logits with respect to every parameter."""
    torch = peers.torch()
    theirs = peer_models.randomise(small.build(config))
    found = interop.source(small.save(theirs, config, folder / "weights", file))
    model, params = configs.build(found.model), jax.tree.map(jnp.asarray, found.params())
    image, text = inputs()
    out = theirs(peer_models.channels_first(image), torch.tensor(text).long())
    bias = out.get("logit_bias", 0.0)
    logits = out["logit_scale"] * out["text_features"] @ out["image_features"].T + bias
    (logits * torch.tensor(WEIGHT)).sum().backward()
    features = [out[name].detach() for name in ("image_features", "text_features")]
    expected = small.our_gradients(theirs, config, folder / "gradients")

    def objective(params):
        variables = {"params": params}
        z_image, z_text = model.encode_image(variables, image)[0], model.encode_text(variables, text)[0]
        logits = z_text @ z_image.T * model.scale(variables) + model.bias(variables)
        return (logits * WEIGHT).sum(), (logits, z_image, z_text)

    (_, (ours, z_image, z_text)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(z_image, features[0], "image_features")
    assert_close(z_text, features[1], "text_features")
    assert_close(ours, logits.detach(), "logits")
    assert_gradients(gradient, expected, terms=np.abs(ours * WEIGHT).sum())


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_clip(quick_gelu, tmp_path):
    compare(CLIP | {"quick_gelu": quick_gelu}, tmp_path)


def test_clip_from_a_pickle(tmp_path):
    compare(CLIP, tmp_path, "open_clip_pytorch_model.bin")


def test_siglip(timm_tower, tmp_path):  # noqa: F811
    compare(SIGLIP, tmp_path)


def test_towers_of_timm_are_as_timm_has_them():
    """Sizes, activation and patch of every name that stands for one of SigLIP's towers."""
    small.library()
    import timm
    import torch

    from vlm_jax.interop import open_clip as ours

    known = 0
    for name in timm.list_models("vit_*_siglip_*"):
        match = ours.TIMM_NAME.fullmatch(name)
        if match is None:
            continue
        known += 1
        with torch.device("meta"):
            tower = timm.create_model(name)
        sizes = ours.TIMM_SIZES[match[1]]
        assert len(tower.blocks) == sizes["depth"]
        assert tower.embed_dim == sizes["width"]
        assert tower.blocks[0].attn.num_heads == sizes["num_heads"]
        assert tower.blocks[0].mlp.fc1.out_features == sizes["mlp_dim"]
        activation = tower.blocks[0].mlp.act
        tanh = getattr(activation, "approximate", "none") == "tanh" or "Tanh" in type(activation).__name__
        assert tanh == bool(ours.TIMM_TANH.match(name)), name
        assert tower.patch_embed.patch_size == (int(match[2]),) * 2
        assert tower.norm.eps == 1e-6
    assert known > 10


@pytest.mark.parametrize("name", ["clip", "quick_gelu", "siglip"])
def test_import_and_export(name, timm_tower, tmp_path):  # noqa: F811
    """What is written again makes the same model there, bit by bit."""
    torch = peers.torch()
    config = {"clip": CLIP, "quick_gelu": CLIP | {"quick_gelu": True}, "siglip": SIGLIP}[name]
    theirs = peer_models.randomise(small.build(config))
    found = interop.source(small.save(theirs, config, tmp_path / "theirs"))
    halves = (0.5, 0.5, 0.5)
    image = ImageTransform(size=peer_models.IMAGE)
    folder = writing.to_open_clip(configs.build(found.model), found.params(), image, None, halves, halves)
    writing.save(folder, tmp_path / "ours")
    written = json.loads((tmp_path / "ours/open_clip_config.json").read_text())
    again = small.build(written["model_cfg"]).eval()
    state = {name: torch.tensor(value) for name, value in load_file(tmp_path / "ours" / folder.weights).items()}
    again.load_state_dict(state, strict=True)
    pixels, text = inputs()
    arguments = peer_models.channels_first(pixels), torch.tensor(text).long()
    with torch.no_grad():
        before, after = theirs(*arguments), again(*arguments)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert written["preprocess_cfg"]["resize_mode"] == "squash"


def test_every_size_that_can_be_written_is_one_of_timms():
    small.library()
    import timm

    from vlm_jax.interop import open_clip as ours

    written = {f"vit_{size}_patch{p}_siglip_{r}" for (size, p), sizes in ours.TIMM_RESOLUTIONS.items() for r in sizes}
    assert written == {name for name in timm.list_models("vit_*_siglip_*") if ours.TIMM_NAME.fullmatch(name)}


@pytest.mark.parametrize("recipe", ["siglip_b16", "siglip_l16", "siglip_so400m14", "clip_b32", "clip_b16"])
def test_recipes_of_published_sizes_can_be_written(recipe):
    from vlm_jax.interop import described
    from vlm_jax.interop import open_clip as ours

    late = {"vocab_size": 49_408, "pad_id": 49_407, "eos_id": 49_407}
    model = configs.build(configs.load(recipe).task.model, **late)
    assert described.describe(model)[0]["model_type"] == recipe[: recipe.index("_")]
    config, _ = ours.describe(model)
    notes = ours.differences(model, config)
    if recipe == "siglip_b16":  # which trains with the approximate GELU of the paper
        assert config["vision_cfg"]["timm_model_name"] == "vit_base_patch16_siglip_224"
        assert "has activation='gelu', this image tower 'gelu_tanh'" in notes[0]
    assert recipe.startswith("siglip") == bool(notes)
