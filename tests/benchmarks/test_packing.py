"""The benchmark of packing counts the same images on both sides."""

import pytest

from benchmarks import packing
from vlm_jax.data.packing import Packing


@pytest.mark.full
def test_both_sides_hold_the_same_images():
    options = {"budgets": (4, 9), "smallest": 4}
    packed = Packing(tokens=32, images=6, text_tokens=128, examples=8, rows=2, **options)
    padded = Packing(tokens=9, images=1, text_tokens=64, examples=1, rows=1, **options)
    found = packing.measure({"packed": packed, "padded": padded}, 8, width=32, depth=1, rounds=1)
    ours, theirs = found["packed"], found["padded"]
    assert ours["pairs"] + ours["left_out"] == theirs["pairs"] == theirs["rows"] == 8
    assert ours["image_fill"] > theirs["image_fill"]
    assert ours["images_per_s"] > 0
