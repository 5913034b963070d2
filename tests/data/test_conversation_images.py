"""Images of conversations: their sizes, their places, and the arrays that they are in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import PICTURE
from vlm_jax.data.augment import Grayscale
from vlm_jax.data.conversation_images import FixedImages, NativeImages, Size, TiledImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.data.tiles import best_grid, unpadded
from vlm_jax.errors import UserError
from vlm_jax.nn import embed

NATIVE = NativeImages(count=3, patch_size=4, patches=48, budget=24, merge=2, cls=True)
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1))
TILED = TiledImages(count=3, tiles=9, side=4, grids=GRIDS)


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
    for images in (TILED, TiledImages(), TiledImages(grids=((1, 2),), side=7)):
        tiled = images.transform(ImageTransform(size=8)).decode_resize(image(500, 500))
        assert images.places == images.size(tiled).places
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


@given(sides=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), side=st.integers(1, 30))
def test_tokens_of_padding_are_left_out(sides, side):
    """As many on both sides; a token stays, or does not, by where its middle is, give or take a half."""
    grid = best_grid(*sides, GRIDS, 12 * side)
    x0, y0, x1, y1 = unpadded(*sides, grid, side)
    height, width = grid[0] * side, grid[1] * side
    assert x0 == width - x1 and y0 == height - y1 and 0 in (x0, y0)
    scale = min(height / sides[0], width / sides[1])
    for first, length, whole in ((y0, sides[0], height), (x0, sides[1], width)):
        assert abs(first - (whole - length * scale) / 2) < 1


def test_tiles_of_images_follow_one_another():
    transform = TILED.transform(ImageTransform(size=8, fill=(1, 2, 3)))
    row = {name: np.zeros(shape, dtype) for name, (shape, dtype) in TILED.spec(8).items()}
    pictures = [transform.decode_resize(picture) for picture in (PICTURE[:20, :20], PICTURE[:8, :30])]
    for number, picture in enumerate(pictures, 1):
        TILED.write(row, number, picture, transform.augment, np.random.default_rng(0))
    assert row["tile_grids"].tolist() == [[2, 2], [1, 2], [0, 0]]
    assert row["tile_boxes"].tolist() == [[0, 0, 8, 8], [0, 1, 8, 3], [0, 0, 0, 0]]  # 4.3 of 8 pixels are the image's
    assert row["image_mask"].tolist() == [True] * (5 + 3) + [False]
    np.testing.assert_array_equal(row["image"][:8], np.concatenate([picture.tiles for picture in pictures]))
    np.testing.assert_array_equal(row["image"][5], ImageTransform(size=8)(PICTURE[:8, :30]))
    assert (row["image"][6, 0] == (1, 2, 3)).all()
    assert [TILED.size(picture) for picture in pictures] == [Size(16 + 8 * 9, 5), Size(16 + 2 * 9, 3)]


def test_a_row_has_room_for_so_many_tiles():
    """The third image takes five more than the four that are left."""
    text = Text(length=200, canonicalise="none", pad="pad")
    pictures = [PICTURE[:20, :20], PICTURE[:8, :30], PICTURE[:20, :20]]
    record = {"messages": [{"role": "user", "content": "<image>a<image>b<image>"}], "images": pictures}
    small = ImageTransform(size=8)
    with pytest.raises(UserError, match=r"takes 213 tokens, 3 images, 13 tiles, and a row has room for 200, 3, 9\."):
        Conversations(images=TILED).prompts([record], image=small, text=text)
    wide = Conversations(images=dataclasses.replace(TILED, tiles=13))
    rows = wide.prompts([record], image=small, text=dataclasses.replace(text, length=220))
    assert np.bincount(rows["text_image_ids"][0])[1:].tolist() == [88, 34, 88]
    assert wide.metrics(rows | {"target_mask": rows["text"] > 0})["packing/image_fill"] == 1


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
        (lambda: TiledImages(side=0), r"^TiledImages\.side=0 must be at least 1\.$"),
        (lambda: TiledImages(tiles=4), r"^TiledImages\.tiles=4 is less than the 5 of one image; raise it\.$"),
        (lambda: TiledImages(grids=((0, 1),)), "wanted are pairs"),
        (lambda: TILED.transform(ImageTransform(flip=True)), "flip varies images, which tiles show as they are"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
