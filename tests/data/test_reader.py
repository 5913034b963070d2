from __future__ import annotations

import numpy as np
import pytest

from vlm_jax.data import reader
from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.data.reader import Reader
from vlm_jax.errors import Fault


class Source:
    """One record, the reading of which may fail a few times."""

    name = "one"

    def __init__(self, record, failures=0, error=OSError("disk on fire")):
        self.record, self.failures, self.error = record, failures, error
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        if self.reads <= self.failures:
            raise self.error
        return self.record


IMAGE = np.zeros((2, 2, 3), np.uint8)
RECORD = {"image": IMAGE, "text": ["a", "b"], "label": 3}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(reader.time, "sleep", waits.append)
    return waits


def same(image):
    return image


def test_example():
    example = Reader(Source(RECORD), same, needs_text=True)(0)
    assert example.image is IMAGE and example.texts == ("a", "b") and example.label == 3
    assert Reader(Source({**RECORD, "text": 8 * [b"\xff"]}), same)(0).texts == ()


@pytest.mark.parametrize(
    "text, texts", [("a", ("a",)), (None, ()), ([], ()), ("", ()), ([" ", "a", None, "\n"], ("a",)), ((), ())]
)
def test_blank_captions_are_none(text, texts):
    record = {"image": IMAGE, "text": text}
    assert Reader(Source({"image": IMAGE}), same)(0).label == -1
    if texts:
        assert Reader(Source(record), same, needs_text=True)(0).texts == texts
    else:
        with pytest.raises(UnreadableRecord, match="no text"):
            Reader(Source(record), same, needs_text=True)(0)


def test_an_io_error_is_tried_three_times(no_waiting):
    source = Source(RECORD, failures=2)
    assert Reader(source, same)(7).label == 3
    assert source.reads == 3 and len(no_waiting) == 2 and no_waiting[0] < no_waiting[1]


def test_an_io_error_that_stays_stops_the_run():
    source = Source(RECORD, failures=99)
    with pytest.raises(Fault, match=r"'one': record 7 .* 3 tries .*disk on fire"):
        Reader(source, same)(7)
    assert source.reads == 3


def test_damage_is_not_tried_again():
    source = Source(RECORD, failures=99, error=UnreadableRecord("one", "k", "torn"))
    with pytest.raises(UnreadableRecord, match="torn"):
        Reader(source, same)(7)
    assert source.reads == 1


def test_text_that_a_format_cannot_decode_is_damage(no_waiting):
    try:
        b"caf\xe9".decode()
    except UnicodeDecodeError as error:
        source = Source(RECORD, failures=99, error=error)
    with pytest.raises(
        UnreadableRecord, match=r"one: record 7 is unreadable: its text is not UTF-8: unexpected end of"
    ):
        Reader(source, same)(7)
    assert source.reads == 1 and not no_waiting


@pytest.mark.parametrize("label", [0, 1, None, 2, -1])
def test_templates_make_captions_of_class_names(label):
    source = Source({**RECORD, "label": label})
    source.class_names = ("cat", "dog")
    read = Reader(source, same, needs_text=True, templates=("a {}", "{}s"))
    if label in (0, 1):
        assert read(0).texts == (("a cat", "cats"), ("a dog", "dogs"))[label]
    else:
        with pytest.raises(UnreadableRecord, match="it has no class name"):
            read(0)


@pytest.mark.parametrize("record, key", [({"image": b""}, "7"), ({"image": b"", "key": "shard/9"}, "shard/9")])
def test_an_undecodable_image_is_an_unreadable_record(record, key):
    def decode(data):
        raise UnreadableImage("no image")

    with pytest.raises(UnreadableRecord) as error:
        Reader(Source(record), decode)(7)
    assert (error.value.source, error.value.key, error.value.why) == ("one", key, "no image")


def test_bugs_are_not_taken_for_damage():
    def decode(data):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Reader(Source(RECORD), decode)(0)


def test_cache_reads_once():
    source, decoded = Source(RECORD), []
    read = Reader(source, lambda image: decoded.append(1) or image, cache={})
    assert read(0) is read(0)
    assert source.reads == 1 and len(decoded) == 1
