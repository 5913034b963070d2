"""LLaVA's images at any resolution: what the data counts is what the model puts there, token for token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.conversation_images import FixedImages, TiledImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.llava import Llava
from vlm_jax.models.vit import ViT

DECODER = LanguageModel(
    width=32, depth=1, num_heads=4, num_kv_heads=2, mlp_dim=48, vocab_size=260, length=320, dtype="float32", scan=False
)
VIT = ViT(width=24, depth=1, num_heads=2, image_size=16, patch_size=4, pool="cls", out_dim=None, dtype="float32")
MODEL = Llava(DECODER, image=VIT, layer=-1, images=2, tiles=10)
IMAGES = TiledImages(count=2, tiles=10, side=4)
SIZES = [(40, 40), (17, 60), (90, 20), (30, 33)]  # height, width
PICTURES = [np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8) for k, size in enumerate(SIZES)]


def rows_of(images, *pictures):
    """A prompt a row, in which a letter stands before each of its pictures and after the last."""
    places = "".join(f"{letter}<image>" for letter, _ in zip("abc", pictures[0]))
    records = [{"messages": [{"role": "user", "content": f"{places}z"}], "images": list(row)} for row in pictures]
    text = Text(length=300, canonicalise="none", pad="pad")
    return Conversations(images=images).prompts(records, image=ImageTransform(size=16), text=text)


@pytest.mark.parametrize("merge", [1, pytest.param(2, marks=pytest.mark.full)])
def test_vectors_stand_row_by_row_of_the_image(merge, parameters):
    """The thumbnail's, then of every row of the image those of its tokens in whatever tile, and the newline."""
    side = 4 // merge
    model, images = dataclasses.replace(MODEL, merge=merge), dataclasses.replace(IMAGES, side=side)
    variables, batch = parameters(model), rows_of(images, PICTURES[:2], PICTURES[2:])
    parts = jax.jit(lambda v, b: (model.embed(v, b), model.image_vectors(v, b["image"])))(variables, batch)
    embedded, each = map(np.asarray, parts)
    text = np.asarray(model.decoder.embed(variables["params"]["decoder"], batch["text"]))
    newline = variables["params"]["image_newline"]
    for row, ids in enumerate(batch["text_image_ids"]):
        np.testing.assert_allclose(embedded[row][ids == 0], text[row][ids == 0], atol=1e-6)
        first = 0
        for number in (1, 2):
            rows, columns = batch["tile_grids"][row, number - 1]
            x0, y0, x1, y1 = batch["tile_boxes"][row, number - 1]
            expected = list(each[row, first])
            for y in range(y0, y1):
                for x in range(x0, x1):
                    tile = each[row, first + 1 + y // side * columns + x // side].reshape(side, side, -1)
                    expected.append(tile[y % side, x % side])
                expected.append(newline)
            np.testing.assert_allclose(embedded[row][ids == number], np.stack(expected), atol=1e-5)
            first += 1 + rows * columns
        assert batch["image_mask"][row].sum() == first


@pytest.mark.full
def test_rows_may_hold_more_than_their_images_need(parameters):
    """A row's tiles and images are limits: with others the same prompt has the same hidden states."""
    variables, batch = parameters(MODEL), rows_of(IMAGES, PICTURES[1:2])
    more = rows_of(dataclasses.replace(IMAGES, count=3, tiles=14), PICTURES[1:2])
    wide = dataclasses.replace(MODEL, images=3, tiles=14)
    hidden = [jax.jit(model.hidden)(variables, rows)[0] for model, rows in ((MODEL, batch), (wide, more))]
    np.testing.assert_allclose(*hidden, atol=1e-5)


def test_shapes_are_those_of_the_data():
    spec, data = MODEL.batch_spec(3, 300), Conversations(images=IMAGES).spec(16, 300)
    assert {name: (s.shape[1:], s.dtype.name) for name, s in spec.items()}.items() <= data.items()
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))["params"]
    assert shapes["image_newline"].shape == (32,) and jnp.issubdtype(shapes["image_newline"].dtype, jnp.float32)
    assert "image_newline" not in jax.eval_shape(Llava(DECODER, image=VIT, layer=-1).init, jax.random.key(0))["params"]


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (MODEL, FixedImages(2, 16), "the model takes TiledImages"),
        (Llava(DECODER, image=VIT, layer=-1), IMAGES, "the model takes FixedImages"),
        (MODEL, dataclasses.replace(IMAGES, tiles=11), "TiledImages.tiles=11: the model takes 10"),
        (MODEL, dataclasses.replace(IMAGES, side=2), "TiledImages.side=2: the model takes 4"),
        (MODEL, dataclasses.replace(IMAGES, count=1), "TiledImages.count=1: the model takes 2"),
    ],
)
def test_images_that_the_model_does_not_take(model, images, message):
    with pytest.raises(UserError, match=message):
        model.check_images(images)


def test_tiles_are_some():
    with pytest.raises(UserError, match="tiles=1: an image takes two at least"):
        dataclasses.replace(MODEL, tiles=1)
