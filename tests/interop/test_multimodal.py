"""LLaVA and Fuyu of transformers: logits and gradients of every parameter, of texts with images among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.errors import UserError
from vlm_jax.interop import hugging_face

from ..parity import peers
from . import peer_models as small
from .peer_models import assert_close, assert_gradients

IMAGE_ID, VOCAB, ROWS, LENGTH = 58, 60, 2, 24
NEWLINE = VOCAB - 1  # as a vocabulary that ends before Fuyu's newline is imported
TEXT = {**small.SIZES, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WEIGHT = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCAB)).astype(np.float32)


def llava(kind="llama"):
    t = peers.transformers()
    vision = {
        **small.VISION,
        "num_hidden_layers": 3,
        "model_type": "clip_vision_model",
        "image_size": 16,
        "patch_size": 4,
    }
    config = t.LlavaConfig(
        vision_config=vision,
        text_config=TEXT | {"model_type": kind, "num_key_value_heads": 2},
        image_token_index=IMAGE_ID,
    )
    return small.randomise(t.LlavaForConditionalGeneration(config))


def fuyu():
    t = peers.transformers()
    config = t.FuyuConfig(text_config=TEXT | {"model_type": "persimmon"}, patch_size=4, image_token_id=IMAGE_ID)
    return small.randomise(t.FuyuForCausalLM(config))


def imported(model, folder):
    found = interop.source(small.save(model, folder))
    return configs.build(found.model), jax.tree.map(jnp.asarray, found.params())


def compare(theirs, batch, folder, **inputs):
    model, params = imported(theirs, folder / "weights")
    out = theirs(**inputs).logits
    (out * peers.torch().tensor(WEIGHT)).sum().backward()
    expected = small.our_gradients(theirs, folder / "gradients")

    def objective(params):
        variables = {"params": params}
        hidden, _ = model.hidden(variables, batch)
        logits = model.decoder.logits(params["decoder"], hidden)
        return (logits * WEIGHT).sum(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(logits, out.detach(), "logits")
    assert_gradients(gradient, expected)


def text_with_images(*begins, places):
    """Ids, and which image each place is of."""
    text = np.random.default_rng(0).integers(3, 50, (ROWS, LENGTH)).astype(np.int32)
    ids = np.zeros_like(text)
    for row, begin in enumerate(begins):
        ids[row, begin : begin + places] = 1
    return text, ids


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.full)])
def test_llava(kind, tmp_path):
    torch = peers.torch()
    text, ids = text_with_images(2, 5, places=16)
    image = np.random.default_rng(2).normal(size=(ROWS, 1, 16, 16, 3)).astype(np.float32)
    batch = {"text": text, "text_image_ids": ids, "text_segment_ids": np.ones_like(text), "image": image}
    theirs = torch.tensor(np.where(ids, IMAGE_ID, text)).long()
    compare(llava(kind), batch, tmp_path, input_ids=theirs, pixel_values=small.channels_first(image[:, 0]))


def test_fuyu(tmp_path):
    torch = peers.torch()
    grid = np.array([[[3, 4]], [[3, 4]]], np.int32)
    text, ids = text_with_images(1, 6, places=3 * 5)
    patches = np.random.default_rng(2).normal(size=(ROWS, 14, 48)).astype(np.float32)
    batch = {"text": text, "text_image_ids": ids, "text_segment_ids": np.ones_like(text)}
    batch |= {"patches": patches, "image_grids": grid}
    theirs = text.copy()
    for row, begin in enumerate((1, 6)):
        for line in range(3):
            at = begin + 5 * line
            theirs[row, at : at + 4], theirs[row, at + 4] = IMAGE_ID, NEWLINE
    shown = torch.tensor(patches[:, :12].copy())
    compare(fuyu(), batch, tmp_path, input_ids=torch.tensor(theirs).long(), image_patches=shown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_layer": 1}, "vision_feature_layer=1"),
        ({"text_config": {"model_type": "gemma"}}, "gemma"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    ],
)
def test_what_is_not_supported(change, message):
    with pytest.raises(UserError, match=message):
        hugging_face.FAMILIES["llava"].model({"model_type": "llava", **change}, "config.json")
