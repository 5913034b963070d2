from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vlm_jax.data import naflex
from vlm_jax.data.image import ImageTransform

SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.sampled_from([8, 14, 16]), st.integers(1, 1200))
@example(1, 1, 8, 196)
def test_grids_keep_to_the_budget_and_nearly_fill_it(height, width, patch, most):
    rows, cols = naflex.grid(height, width, patch, most)
    assert rows >= 1 and cols >= 1
    longest, shortest = max(height, width), min(height, width)
    if longest <= most * shortest:  # else a single row of patches is too long already
        assert rows * cols <= most
    if most >= 16 and longest <= 4 * shortest:
        assert (rows + 1) * (cols + 1) >= most  # equal where a square's budget is a square: its scale just misses it


@pytest.mark.parametrize("size, grid", [((480, 640), (14, 18)), ((100, 100), (16, 16)), ((64, 1024), (4, 64))])
def test_grids_of_256_patches(size, grid):
    assert naflex.grid(*size, 16, 256) == grid


def test_rows_hold_patches_and_where_they_lie():
    images = [
        np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i, shape in enumerate(((8, 12, 3), (4, 4, 3)))
    ]
    rows = naflex.rows(images, patch_size=4, max_patches=7)
    assert rows["grids"].tolist() == [[[2, 3]], [[1, 1]]]
    assert rows["segment_ids"].tolist() == [[1] * 6 + [0], [1] + [0] * 6]
    for row, image in enumerate(images):
        for at in np.flatnonzero(rows["segment_ids"][row]):
            y, x = 4 * rows["positions"][row, at]
            np.testing.assert_array_equal(rows["patches"][row, at].reshape(4, 4, 3), image[y : y + 4, x : x + 4])
    assert not rows["patches"][rows["segment_ids"] == 0].any()


def test_a_large_jpeg_is_decoded_at_a_scale_that_leaves_enough():
    y, x = np.mgrid[:1200, :1600]
    stripes = (127 + 100 * np.sin(x / 3) * np.cos(y / 5))[..., None].repeat(3, 2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "JPEG", quality=95)
    options = dict(size=64, resize="naflex", max_patches=1024)
    fast, full = (ImageTransform(**options, decoder=decoder)(file.getvalue()) for decoder in ("pillow", "full"))
    assert fast.shape == full.shape == (27 * 16, 36 * 16, 3)
    assert np.abs(fast.astype(int) - full).mean() < 2


def test_a_batch_of_one_size_is_stacked():
    square = ImageTransform(8)
    assert square.batch([square.blank, square.blank]).shape == (2, 8, 8, 3)
    native = ImageTransform(resize="naflex", patch_size=4, max_patches=6)
    assert native.batch([native.blank])["grids"].tolist() == [[[1, 1]]]
