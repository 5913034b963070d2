"""The benchmark of packed conversations trains on the same ones on both sides."""

import pytest

from benchmarks import packing_text


@pytest.mark.full
def test_both_sides_hold_the_same_conversations():
    found = packing_text.measure(length=448, rows=2, rounds=1, width=32, depth=1, mlp_dim=32)
    packed, padded = found["packed"], found["padded"]
    assert packed["conversations"] == padded["conversations"] == padded["rows"] > packed["rows"] == 2
    assert packed["tokens"] == padded["tokens"] and packed["loss"] == pytest.approx(padded["loss"], abs=1e-4)
    assert packed["wasted"] < padded["wasted"]
