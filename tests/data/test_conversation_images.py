"""Images of conversations: their sizes, their places, and the arrays that they are in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import PICTURE
from vlm_jax.data.augment import Grayscale
from vlm_jax.data.conversation_images import FixedImages, NativeImages, Size
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.nn import embed

NATIVE = NativeImages(count=3, patch_size=4, patches=48, budget=24, merge=2, cls=True)


def image(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))


@given(
    sides=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    merge=st.integers(1, 3),
    tokens=st.integers(1, 150),
    cls=st.booleans(),
    longest=st.one_of(st.none(), st.integers(3, 40)),
)
def test_a_grid_is_of_whole_tokens_within_its_budget(sides, merge, tokens, cls, longest):
    budget = tokens * merge**2
    images = NativeImages(patches=budget, budget=budget, merge=merge, cls=cls, longest=longest)
    rows, cols = images.grid(image(*sides))
    assert rows % merge == cols % merge == 0 and 0 < rows * cols <= budget and max(rows, cols) <= (longest or budget)
    r, c = rows // merge, cols // merge
    row_by_row = ["cls"] * cls + [place for _ in range(r) for place in [*range(c), "newline"]]
    assert images.size(image(*sides)) == Size(len(row_by_row), rows * cols)


def test_places_are_those_of_a_square_image():
    for images in (NATIVE, NativeImages(), NativeImages(merge=2, cls=True)):
        assert images.places == images.size(image(500, 500)).places
    assert FixedImages(tokens=9).places == FixedImages(tokens=9).size(image(3, 5)).places == 9


def test_native_images_follow_one_another():
    transform = NATIVE.transform(ImageTransform(size=8))
    row = {name: np.zeros(shape, dtype) for name, (shape, dtype) in NATIVE.spec(8).items()}
    pictures = [PICTURE, PICTURE[:20, :20]]
    for number, picture in enumerate(pictures, 1):
        NATIVE.write(row, number, transform.decode_resize(picture), transform.augment, np.random.default_rng(0))
    assert row["image_grids"].tolist() == [[4, 6], [4, 4], [0, 0]]
    assert np.bincount(row["image_segment_ids"]).tolist() == [8, 24, 16]
    for number, (rows, cols) in enumerate(row["image_grids"][:2].tolist(), 1):
        mine = row["image_segment_ids"] == number
        assert (np.diff(np.flatnonzero(mine)) == 1).all()
        assert row["patch_positions"][mine].tolist() == [[r, c] for r in range(rows) for c in range(cols)]
        resized = transform.augment(transform.decode_resize(pictures[number - 1]), None, (rows, cols))
        np.testing.assert_array_equal(row["patches"][mine], embed.patchify(resized[None], 4).reshape(rows * cols, 48))


def test_fixed_images_stand_at_their_numbers():
    images = FixedImages(count=3)
    row = {name: np.zeros(shape, dtype) for name, (shape, dtype) in images.spec(8).items()}
    transform = images.transform(ImageTransform(size=8))
    images.write(row, 2, transform.decode_resize(PICTURE), transform.augment, np.random.default_rng(0))
    assert row["image_mask"].tolist() == [False, True, False]
    np.testing.assert_array_equal(row["image"][1], ImageTransform(size=8)(PICTURE))


@pytest.mark.parametrize("images", [FixedImages(), NATIVE])
def test_nothing_varies_in_evaluation(images):
    varied = ImageTransform(size=16, flip=True, augmentation=Grayscale(p=1.0))
    varied = dataclasses.replace(varied, random_resized_crop=(0.5, 0.6)) if images == FixedImages() else varied
    rows = []
    for transform in (images.plain(varied), images.plain(ImageTransform(size=16))):
        rows.append({name: np.zeros(shape, dtype) for name, (shape, dtype) in images.spec(16).items()})
        images.write(rows[-1], 1, transform.decode_resize(PICTURE), transform.augment, None)
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FixedImages(tokens=0), r"^FixedImages\.tokens=0 must be at least 1\.$"),
        (lambda: NativeImages(count=0), r"^NativeImages\.count=0 must be at least 1\.$"),
        (lambda: NativeImages(merge=3, budget=8), "an image has at least 3 x 3 patches"),
        (lambda: NativeImages(merge=3, longest=2), "an image has at least 3 x 3 patches"),
        (lambda: NativeImages(patches=575), "patches=575 is less than an image of budget=576"),
        (lambda: NATIVE.transform(ImageTransform(pad_crop=2)), "pad_crop changes the aspect ratio"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
