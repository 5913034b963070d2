"""Conversions: whole or not there, resumed, and true to what they were made from."""

from __future__ import annotations

import errno
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from vlm_jax.data import writers
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import decode
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.writers import FORMATS, convert, extension_of
from vlm_jax.errors import UserError

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Source:
    """Images of several formats and as arrays, with none to three captions of any characters."""

    name, fingerprint, class_names = "made/up", "0123", ("cat", "größe", "owl")

    def __init__(self, length: int = 25, broken: tuple[int, ...] = (), fingerprint: str = "0123"):
        self.length, self.broken, self.fingerprint, self.reads = length, broken, fingerprint, []

    def __len__(self):
        return self.length

    def __getitem__(self, k: int) -> dict:
        self.reads.append(k)
        if k in self.broken:
            raise UnreadableRecord(self.name, f"file:{k}", "it is broken")
        array = np.full((5, 4, 3), k, np.uint8)
        if k % 7 == 6:
            image = array
        else:
            file = io.BytesIO()
            Image.fromarray(array).save(file, KINDS[k % 7])
            image = file.getvalue()
        texts = ["a b", 'q"uo,te', "größe\n大"][: 1 + k % 3]
        return {"image": image, "text": texts if k % 2 else texts[0], "label": k % 3, "key": f"file:{k}"}


def read_back(folder, form: str, storage: Storage):
    return {
        "tar": lambda: WebDataset(str(folder), text=("json:text",), label="cls", storage=storage),
        "array_record": lambda: ArrayRecord(str(folder), label="label", storage=storage),
        "parquet": lambda: Parquet(str(folder), text_column="text", label_column="label", storage=storage),
        "folder": lambda: Listing(
            f"{folder}/*/metadata.jsonl", label="label", classes=Source.class_names, storage=storage
        ),
    }[form]()


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_written_is_read(tmp_path, storage, form):
    source = Source()
    written = convert(source, tmp_path / "out", form, shard_records=10)
    assert written.records == 25 and written.unreadable == []
    found = read_back(tmp_path / "out", form, storage)
    assert len(found) == 25 and found.class_names == Source.class_names
    for k in range(25):
        given, record = source[k], found[k]
        if isinstance(given["image"], bytes):
            assert record["image"] == given["image"]
        np.testing.assert_array_equal(decode(record["image"]), given["image"] if k % 7 == 6 else decode(given["image"]))
        assert record["text"] == ([given["text"]] if isinstance(given["text"], str) else given["text"])
        assert record["label"] == k % 3
    shards = [name for name in os.listdir(tmp_path / "out") if name.startswith("0")]
    assert sorted(shards) == [f"0000{k}{FORMATS[form][1]}" for k in range(3)]
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ngröße\nowl\n"
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


def test_sources_without_classes_and_arrays(tmp_path, storage):
    source = Shapes(size=7)
    for form in FORMATS:
        convert(source, tmp_path / form, form)
    found = WebDataset(str(tmp_path / "tar"), text=("json:text",), storage=storage)
    for k in range(7):
        np.testing.assert_array_equal(decode(found[k]["image"]), source[k]["image"])
        texts = source[k]["text"]
        assert found[k]["text"] == ([texts] if isinstance(texts, str) else list(texts))


@pytest.mark.parametrize("form", FORMATS)
def test_unreadable_records_are_told_and_left_out(tmp_path, storage, form):
    written = convert(Source(broken=(3, 24)), tmp_path / "out", form, shard_records=10)
    assert written.records == 23
    assert written.unreadable == [("file:3", "it is broken"), ("file:24", "it is broken")]
    found = read_back(tmp_path / "out", form, storage)
    assert len(found) == 23 and found[3]["text"][0] == "a b"
    assert convert(Source(broken=(3, 24)), tmp_path / "out", form, shard_records=10) == written


@pytest.mark.parametrize("form", FORMATS)
def test_a_caption_that_cannot_be_written(tmp_path, storage, form):
    class Broken(Source):
        def __getitem__(self, k):
            record = super().__getitem__(k)
            return {**record, "text": "half \ud83d"} if k == 4 else record

    written = convert(Broken(), tmp_path / "out", form)
    assert written.records == 24 and written.unreadable[0][0] == "file:4" and "not UTF-8" in written.unreadable[0][1]
    assert len(read_back(tmp_path / "out", form, storage)) == 24


@pytest.mark.parametrize("form", FORMATS)
def test_an_interruption_costs_one_shard(tmp_path, storage, form):
    class Stops(Source):
        def __getitem__(self, k):
            if k == 15:
                raise KeyboardInterrupt
            return super().__getitem__(k)

    with pytest.raises(KeyboardInterrupt):
        convert(Stops(broken=(2,)), tmp_path / "out", form, shard_records=10)
    assert sorted(os.listdir(tmp_path / "out")) == [f"00000{FORMATS[form][1]}", "classes.txt", "dataset.json"]
    again = Source(broken=(2,))
    written = convert(again, tmp_path / "out", form, shard_records=10)
    assert again.reads == list(range(10, 25)) and written.unreadable == [("file:2", "it is broken")]
    assert len(read_back(tmp_path / "out", form, storage)) == 24


def test_a_full_disk(tmp_path, monkeypatch):
    def full(path, items, class_names):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(writers.FORMATS, "tar", (full, ".tar"))
    with pytest.raises(UserError, match=r"No space left on device; the same command goes on where it stopped"):
        convert(Source(), tmp_path / "out", "tar")
    assert sorted(os.listdir(tmp_path / "out")) == ["classes.txt", "dataset.json"]


def test_folders_that_hold_something_else(tmp_path):
    convert(Source(), tmp_path / "out", "tar", shard_records=10)
    for options, why in (
        ({"form": "parquet"}, "format was 'tar', is 'parquet'"),
        ({"shard_records": 5}, "shard_records was 10, is 5"),
        ({"source": Source(fingerprint="4567")}, "fingerprint was '0123', is '4567'"),
    ):
        with pytest.raises(UserError, match=why):
            convert(**{"source": Source(), "folder": tmp_path / "out", "form": "tar", "shard_records": 10, **options})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        convert(Source(), tmp_path / "mine", "tar")
    with pytest.raises(UserError, match="cannot be written"):
        convert(Source(), tmp_path / "mine/thesis.tex/out", "tar")


@pytest.mark.parametrize(
    "options, message", [({"form": "tars"}, "did you mean 'tar'"), ({"shard_records": 0}, "least 1")]
)
def test_mistakes_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert(**{"source": Source(), "folder": tmp_path / "out", "form": "tar", **options})
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_where_it_comes_from(tmp_path):
    convert(Source(3), tmp_path, "tar")
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    assert manifest["source"] == "made/up" and manifest["fingerprint"] == "0123" and manifest["format"] == "tar"


def test_extensions():
    for kind, extension in zip(KINDS, ("jpg", "png", "webp", "gif", "bmp", "tif")):
        file = io.BytesIO()
        Image.new("RGB", (2, 2)).save(file, kind)
        assert extension_of(file.getvalue()) == extension
    assert extension_of(b"<html>") == "img"
