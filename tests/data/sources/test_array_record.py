"""ArrayRecord files: at random, checked, and refused where reading at random would crawl."""

from __future__ import annotations

import re

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.data.sources.tars import png, value
from tests.data.sources.threads import check_threads_and_copies
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources import array_record as module
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.example_proto import encode_example
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError


def write(path, records, options: str = "group_size:1,uncompressed") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record if isinstance(record, bytes) else encode_example(record))
    writer.close()
    return str(path)


def record(k: int, **more) -> dict:
    return {"image": png(k), "text": [f"caption {k}", f"other {k}"], "label": k % 3, "name": "dog", **more}


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    for name, numbers in {"a/x-0": range(8), "a/x-1": range(8, 9), "b/x-2": range(9, 20)}.items():
        write(tmp_path / f"data/{name}.array_record", map(record, numbers))
    return tmp_path / "data"


def test_records_in_any_order(folder, storage):
    source = ArrayRecord(str(folder), storage=storage)
    assert len(source) == 20
    for index in np.random.default_rng(0).permutation(20).tolist() * 2:
        found = source[index]
        start, name = (0, "x-0") if index < 8 else (8, "x-1") if index < 9 else (9, "x-2")
        assert value(found) == index and found["text"] == [f"caption {index}", f"other {index}"]
        assert found["key"] == f"{name}.array_record:{index - start}" and "label" not in found
    assert len(list(source.captions())) == 40 and next(source.captions(1)) == "caption 0"
    with pytest.raises(IndexError):
        source[20]


def test_classes(folder, storage):
    source = ArrayRecord(str(folder), text=(), label="label", classes=("cat", "dog", "owl"), storage=storage)
    assert source[5]["label"] == 2 and source[5]["text"] == ["a photo of a owl."]
    (folder / "classes.txt").write_text("cat\ndog\n")
    named = ArrayRecord(str(folder), label="name", storage=storage)
    assert named.class_names == ("cat", "dog") and named[3]["label"] == 1 and named[3]["text"][0] == "caption 3"


@pytest.mark.parametrize("index", [None, "beside"])
def test_files_are_counted_once(folder, storage, index, monkeypatch):
    before = ArrayRecord(str(folder), storage=storage, index=index)
    monkeypatch.setattr(module, "count_records", lambda *_, **__: pytest.fail("counted again"))
    opened = []
    monkeypatch.setattr(module, "open_file", lambda file, *a, o=module.open_file: opened.append(file) or o(file, *a))
    again = ArrayRecord(str(folder), storage=storage, index=index)
    assert again.fingerprint == before.fingerprint and len(again) == 20
    again[19], again[18]
    assert sorted({file.name for file in opened}) == ["x-0.array_record", "x-2.array_record"] and len(opened) == 2


def test_files_of_a_bucket(folder, storage):
    fs = fsspec.filesystem("memory")
    for path in folder.rglob("*.array_record"):
        fs.pipe(f"/ar/{path.name}", path.read_bytes())
    try:
        here = ArrayRecord(str(folder), storage=storage)
        there = ArrayRecord("memory:///ar/*.array_record", storage=storage)
        assert [there[k] for k in range(20)] == [here[k] for k in range(20)]
        assert there.fingerprint == here.fingerprint
    finally:
        fs.rm("/ar", recursive=True)


def test_threads_and_copies_read_the_same(folder, storage):
    source = ArrayRecord(str(folder), storage=storage)
    source[0]  # opens the file
    check_threads_and_copies(source)


def test_other_group_sizes_are_refused(tmp_path, storage):
    path = write(tmp_path / "x.array_record", map(record, range(9)), "group_size:4")
    with pytest.raises(UserError, match=r"written with group_size:4.*ArrayRecordWriter\(path, 'group_size:1'\)"):
        ArrayRecord(path, storage=storage)


def test_unreadable_records(tmp_path, storage):
    records = [
        record(0),
        b"no example",
        record(1, image=b""),
        record(2, image=7),
        record(3, text=[]),
        record(4, text=[1, 2]),
        record(5, text=b"caf\xe9"),
        record(6, name="eel"),
        {"text": "no image", "name": "dog"},
    ]
    path = write(tmp_path / "x.array_record", records)
    source = ArrayRecord(path, label="name", classes=("dog",), storage=storage)
    whys = ["", r"no tf\.train\.Example", "no bytes", "holds numbers", "no text", "hold numbers", "not UTF-8", "'eel'"]
    for index, why in enumerate([*whys, "no bytes"]):
        if why:
            with pytest.raises(UnreadableRecord, match=why) as error:
                source[index]
            assert error.value.key == f"x.array_record:{index}"
    assert source[0]["label"] == 0


def test_flipped_bits_cost_only_their_record(tmp_path, storage):
    noise = np.random.default_rng(0)
    images = [noise.bytes(40_000) for _ in range(12)]
    path = tmp_path / "x.array_record"
    write(path, [{"image": image, "text": "a"} for image in images])
    data = bytearray(path.read_bytes())
    data[data.index(images[5][:100]) + 50] ^= 1
    path.write_bytes(data)
    source = ArrayRecord(str(path), storage=storage)
    for index in (5, 4, 5, 6, 11):
        if index == 5:
            with pytest.raises(UnreadableRecord, match=r"bytes of .*x\.array_record were changed"):
                source[5]
        else:
            assert source[index]["image"] == images[index]


@pytest.mark.parametrize("damage", [lambda d: d[:-70_000], lambda d: d[:-10], lambda d: b"", lambda d: b"<html>" * 99])
def test_files_that_are_cut_off_or_none(tmp_path, storage, damage):
    path = tmp_path / "x.array_record"
    write(path, [{"image": bytes(40_000), "text": "a"}] * 9)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="it is cut off, or no ArrayRecord file") as error:
        ArrayRecord(str(path), storage=storage)
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": "img"}, "has no feature 'img' (image)"),
        ({"text": ("txt",)}, "has no feature 'txt' (text): did you mean 'text'?"),
        ({"label": "labels"}, "has no feature 'labels' (label): did you mean 'label'?"),
        ({"text": ()}, "neither captions nor class names"),
        ({"text": (), "label": "label"}, "neither captions nor class names"),
        ({"skip": 20}, "has 20 records, none is left"),
    ],
)
def test_mistakes_are_named(folder, storage, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ArrayRecord(str(folder), storage=storage, **options)


def test_an_empty_source(tmp_path, storage):
    with pytest.raises(UserError, match="has 0 records"):
        ArrayRecord(write(tmp_path / "x.array_record", []), storage=storage)
