"""Tiles put together are the resized image; grids, shapes, padding. `tests/parity/test_images.py` has LLaVA-NeXT's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_jax import config
from vlm_jax.config import bind
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.tiles import Tiles, best_grid, join, split
from vlm_jax.errors import UserError

GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def picture(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, 256, (h, w, 3), np.uint8)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), size=st.integers(1, 16), thumbnail=st.booleans())
def test_tiles_put_together_are_the_resized_image(h, w, size, thumbnail):
    tiles = Tiles(size, GRIDS, fill=(1, 2, 3), thumbnail=thumbnail)
    tiled = tiles(picture(h, w))
    rows, columns = tiled.grid
    assert tiled.tiles.shape == (rows * columns + thumbnail, size, size, 3) and len(tiled.tiles) <= tiles.most
    x0, y0, x1, y1 = tiled.box
    resized = Image.fromarray(picture(h, w)).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tiled.canvas[y0:y1, x0:x1], resized)
    padding = np.ones(tiled.canvas.shape[:2], bool)
    padding[y0:y1, x0:x1] = False
    assert (tiled.canvas[padding] == (1, 2, 3)).all()
    assert y1 - y0 == rows * size or x1 - x0 == columns * size  # it fills one side
    if thumbnail:
        whole = Image.fromarray(picture(h, w)).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(tiled.tiles[0], whole)


def test_tiles_are_in_reading_order():
    canvas = picture(6, 12)
    tiles = split(canvas, (2, 3))
    np.testing.assert_array_equal(tiles[0], canvas[:3, :4])
    np.testing.assert_array_equal(tiles[2], canvas[:3, 8:])
    np.testing.assert_array_equal(tiles[3], canvas[3:, :4])
    np.testing.assert_array_equal(join(tiles, (2, 3)), canvas)


@pytest.mark.parametrize(
    "h, w, grid",
    [
        (300, 300, (1, 1)),  # more tiles would only enlarge it
        (672, 672, (2, 2)),
        (336, 672, (1, 2)),
        (336, 700, (1, 3)),  # in two tiles it would be shrunk
        (2000, 500, (3, 1)),
        (400, 2000, (1, 3)),
        (1000, 1400, (2, 2)),
    ],
)
def test_the_grid_keeps_the_most_pixels(h, w, grid):
    assert best_grid(h, w, GRIDS, 336) == grid


def test_an_image_of_the_grids_size_is_not_resampled():
    image = picture(32, 64)
    tiled = Tiles(32)(image)
    assert (tiled.grid, tiled.box) == ((1, 2), (0, 0, 64, 32))
    np.testing.assert_array_equal(tiled.canvas, image)


def test_stacks_have_one_shape_whatever_the_images():
    tiles = Tiles(8, GRIDS)
    images = [tiles(picture(*shape)) for shape in ((8, 8), (16, 16), (8, 24))]
    stacked, mask = tiles.stack(images)
    assert stacked.shape == (3, 5, 8, 8, 3) and stacked.dtype == np.uint8
    assert mask.sum(1).tolist() == [2, 5, 4]
    for row, image in enumerate(images):
        np.testing.assert_array_equal(stacked[row][mask[row]], image.tiles)
    assert not stacked[~mask].any()


def test_encoded_images_are_decoded_upright():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(picture(16, 8)).save(file, "PNG", exif=exif)
    tiled = Tiles(8)(file.getvalue())
    assert tiled.grid == (1, 2)
    np.testing.assert_array_equal(tiled.canvas, np.rot90(picture(16, 8), -1))
    with pytest.raises(UnreadableImage):
        Tiles(8)(b"<html>")


def test_they_are_bound_in_a_config():
    node = bind("data.tiles.Tiles", size=8, grids=((1, 1), (2, 2)))
    config.check(node)
    assert config.build(node) == Tiles(8, ((1, 1), (2, 2)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 0}, "at least 1"),
        ({"grids": ()}, "pairs"),
        ({"grids": ((1, 0),)}, "pairs"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"fill": (1, 2)}, "red, green and blue"),
        ({"convention": "openclip"}, "did you mean 'open_clip'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Tiles(**options)
