"""Batches of tiled images: each image's own tiles, whatever prepares them and however a run is restarted."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.numbered import TEXT, Numbered, same, take, told
from vlm_jax import config
from vlm_jax.config import bind
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.tiles import Tiles
from vlm_jax.errors import UserError

TILES = Tiles(size=8, grids=((1, 2), (2, 1), (2, 2)))
IMAGE = ImageTransform(size=8)


class Shaped(Numbered):
    """Numbered records with images of many shapes."""

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)
        return {**record, "image": picture(index)} if record["image"] != b"junk" else record


def picture(index: int) -> bytes:
    rng = np.random.default_rng(index)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*rng.integers(4, 30, 2), 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make(source=None, **options) -> Pipeline:
    source = Shaped("n", damaged=((5, b"junk"),)) if source is None else source
    return Pipeline(source, IMAGE, TEXT, tiles=TILES, **{"threads": 0, **options})


def test_rows_hold_the_tiles_of_their_images():
    batch, _ = take(make(), 8)
    assert {name: (array.shape[1:], array.dtype.name) for name, array in batch.items()} == {
        "image": ((5, 8, 8, 3), "uint8"),
        "image_mask": ((5,), "bool"),
        "tile_grid": ((2,), "int32"),
        "tile_box": ((4,), "int32"),
        "text": ((16,), "int32"),
        "caption_id": ((), "int32"),
        "label": ((), "int32"),
        "example_id": ((2,), "uint32"),
    }
    for row, (_, record) in enumerate(told(batch)):
        tiled = TILES(picture(record))
        count = len(tiled.tiles)
        np.testing.assert_array_equal(batch["image"][row, :count], tiled.tiles)
        assert not batch["image"][row, count:].any()
        assert batch["image_mask"][row].tolist() == [True] * count + [False] * (5 - count)
        assert tuple(batch["tile_grid"][row]) == tiled.grid and tuple(batch["tile_box"][row]) == tiled.box
    assert len({tuple(grid) for grid in batch["tile_grid"].tolist()}) == 3


def test_workers_the_cache_and_a_restart_change_nothing():
    parts = dict(a=Part(Shaped("a", 11)), b=Part(Shaped("b", 30), weight=2))
    whole, end = take(make(Mixture(parts)), 6)
    for options in (dict(workers=2), dict(cache=True, threads=2)):
        head, state = take(make(Mixture(parts)), 2)
        tail, last = take(make(Mixture(parts), **options), 4, state=json.loads(json.dumps(state)))
        same({name: np.concatenate([head[name], tail[name]]) for name in head}, whole)
        assert last == end


def test_damaged_images_are_replaced_and_counted():
    _, state = take(make(), 7)
    assert state["unreadable"] == 1 and state["unreadable_first"][0][0] == "key5"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(image=ImageTransform(size=9)), r"^Tiles\.size=8, ImageTransform\.size=9; set both to one value\.$"),
        (dict(image=ImageTransform(size=8, flip=True)), r"^ImageTransform\.flip varies images, which tiles show"),
        (dict(packing=Packing(patch_size=4)), r"^Pipeline\.packing and tiles say each what a row holds"),
    ],
)
def test_what_does_not_go_with_tiles(options, message):
    with pytest.raises(UserError, match=message):
        Pipeline(**{"source": Numbered(), "image": IMAGE, "text": TEXT, "tiles": TILES, **options})


def test_tiles_are_bound_in_a_recipe():
    node = bind(
        "data.pipeline.Pipeline",
        source=bind("data.sources.shapes.Shapes", size=20, image_size=16),
        image=bind("data.image.ImageTransform", size=8),
        tiles=bind("data.tiles.Tiles", size=8, grids=((2, 2),)),
    )
    config.check(node)
    assert take(config.build(node), 1)[0]["image"].shape == (8, 5, 8, 8, 3)
