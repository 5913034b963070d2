"""`tf.train.Example` against its bytes as the protocol-buffer encoding defines them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vlm_jax.data.sources.example_proto import decode_example, encode_example


def test_bytes_on_the_wire():
    """Field 1 (features) > field 1 (map) > key 1 "a", value 2 > field 3 (int64) > packed field 1: 5, 300."""
    ints = bytes([0x0A, 3, 5, 0xAC, 2])
    feature = bytes([0x1A, len(ints)]) + ints
    entry = bytes([0x0A, 1, ord("a"), 0x12, len(feature)]) + feature
    features = bytes([0x0A, len(entry)]) + entry
    data = bytes([0x0A, len(features)]) + features
    assert encode_example({"a": [5, 300]}) == data
    assert decode_example(data) == {"a": [5, 300]}
    unpacked = data.replace(ints, bytes([0x08, 5, 0x08, 0xAC, 2]))
    assert decode_example(unpacked) == {"a": [5, 300]}


def test_round_trip():
    values = {"image": b"\x00\xff", "text": ["a", "größe"], "label": -3, "weights": [0.5, -2.0], "none": []}
    found = decode_example(encode_example(values))
    assert found == {
        "image": [b"\x00\xff"],
        "text": [b"a", "größe".encode()],
        "label": [-3],
        "weights": [0.5, -2.0],
        "none": [],
    }
    assert encode_example(values) == encode_example(dict(reversed(values.items())))


@pytest.mark.parametrize("data", [b"\xff" * 20, b"<html>", b"\x0a\x50abc"])
def test_what_is_none(data):
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        decode_example(data)


def test_neither_tensorflow_nor_tfds_is_imported():
    code = (
        "import sys; from vlm_jax.data.sources.example_proto import decode_example, encode_example;"
        "decode_example(encode_example({'a': 1}));"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'jax') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
