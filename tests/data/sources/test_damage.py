"""Broken records of every format, in training: replaced, counted and named, while the rest of the data goes on."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from tests.data.sources.tars import png, write_tar
from vlm_jax.data import reader
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.example_proto import encode_example
from vlm_jax.data.sources.folder import Folder
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.tfds import Tfds
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

GOOD = 24


def bomb() -> bytes:
    """A PNG of a few bytes that says it has ten thousand million pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


DAMAGE = {
    "no bytes": (b"", b"caption"),
    "not an image: it starts with b'<html>": (b"<html>404 Not Found</html>", b"caption"),
    "pixels": (bomb(), b"caption"),
    "OSError: image file is truncated": (png(1)[:50], b"caption"),
    "OSError: broken data stream": (flipped(png(1), at=45), b"caption"),
    "the most is ": (png(1), b"word " * 200_000),
    "not UTF-8": (png(1), b"caf\xe9"),
    "no text": (png(1), b" \n"),
}
RECORDS = [(png(k), f"caption {k}".encode()) for k in range(GOOD)] + list(DAMAGE.values())


def tar(folder, storage):
    members = [(f"{k:03}.{ext}", data) for k, pair in enumerate(RECORDS) for ext, data in zip(("png", "txt"), pair)]
    return WebDataset(str(write_tar(folder / "x.tar", members)), storage=storage)


def array_record(folder, storage):
    writer = ArrayRecordWriter(str(folder / "x.array_record"), "group_size:1")
    for image, text in RECORDS:
        writer.write(encode_example({"image": image, "text": text}))
    writer.close()
    return ArrayRecord(str(folder / "x.array_record"), storage=storage)


def files(folder, storage):
    for k, (image, text) in enumerate(RECORDS):
        (folder / f"{k:03}.png").write_bytes(image)
        (folder / f"{k:03}.txt").write_bytes(text)
    return Folder(str(folder), storage=storage)


def listing(folder, storage):
    with open(folder / "metadata.jsonl", "wb") as rows:
        for k, (image, text) in enumerate(RECORDS):
            (folder / f"{k:03}.png").write_bytes(image)
            text = text if b"\xe9" in text else json.dumps(text.decode())[1:-1].encode()
            rows.write(b'{"file_name": "%03d.png", "text": "%s"}\n' % (k, text))
    return Listing(str(folder / "metadata.jsonl"), storage=storage)


def parquet(folder, storage):
    texts = pa.array([text for _, text in RECORDS], pa.binary()).view(pa.string())
    table = pa.table({"image": [image for image, _ in RECORDS], "text": texts})
    pq.write_table(table, folder / "x.parquet", write_page_checksum=True)
    return Parquet(str(folder / "x.parquet"), text_column="text", storage=storage)


class Damaged(tfds.core.GeneratorBasedBuilder):
    """The records, in an order of TFDS's own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(image=tfds.features.Image(shape=(None, None, 3)), text=tfds.features.Text())
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for k, (image, text) in enumerate(RECORDS):
            yield k, {"image": io.BytesIO(image), "text": text}


def prepared(folder, storage):
    Damaged(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return Tfds("damaged/train", data_dir=str(folder), text=("text",), label=None, storage=storage)


WRITERS = [tar, array_record, files, listing, parquet, prepared]


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("write", WRITERS)
def test_broken_records_are_replaced_counted_and_named(tmp_path, storage, write):
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "data", storage)
    assert len(source) == len(RECORDS)
    batches = Pipeline(source, ImageTransform(size=4), Text(length=8), threads=2).batches(
        seed=0, batch_size=len(RECORDS), rows=np.arange(len(RECORDS))
    )
    try:
        batch = next(batches)
        state = batches.state()
    finally:
        batches.close()
    values = batch["image"][:, 0, 0, 0].tolist()
    assert set(range(GOOD)) <= set(values) and len(values) == len(RECORDS)
    assert state["unreadable"] == len(DAMAGE)
    named = dict(state["unreadable_first"])
    assert len(named) == len(DAMAGE)
    for number, why in enumerate(DAMAGE, GOOD):
        (key,) = [key for key, told in named.items() if why in told]
        assert str(number) in key if write is not prepared else key.startswith("damaged/1.0.0/train:")


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_but_broken_records_is_no_data(tmp_path, storage, write, monkeypatch):
    monkeypatch.setitem(globals(), "RECORDS", list(DAMAGE.values()))
    (tmp_path / "data").mkdir()
    source = write(tmp_path / "data", storage)
    batches = Pipeline(source, ImageTransform(size=4), Text(length=8), threads=0).batches(
        seed=0, batch_size=4, rows=np.arange(4)
    )
    with pytest.raises(UserError, match=f"{len(DAMAGE)} records in a row are unreadable"):
        next(batches)
    batches.close()


UNREAD = r"^source 'tfds/damaged/1\.0\.0/train': record \d+ cannot be read .*files of train in \S+damaged/1\.0\.0: "
CHANGED = r"records in a row are unreadable, the first is damaged/1\.0\.0/train:\d+: bytes were changed"


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), UNREAD + "ArrayRecord file should be at least 64KB"),
        (lambda path: path.write_bytes(b""), UNREAD + "ArrayRecord file should be at least 64KB"),
        (lambda path: path.write_bytes(b"<html>" * 20_000), CHANGED),
        (lambda path: path.unlink(), UNREAD + ".*No such file or directory"),
    ],
)
def test_a_damaged_shard_of_tfds_stops_the_run(tmp_path, storage, damage, why, monkeypatch):
    monkeypatch.setattr(reader, "RETRY_SECONDS", (0.0, 0.0))
    source = prepared(tmp_path, storage)
    (shard,) = tmp_path.rglob("*.array_record-*")
    damage(shard)
    batches = Pipeline(source, ImageTransform(size=4), threads=0).batches(seed=0, batch_size=4, rows=np.arange(4))
    with pytest.raises(UserError, match=why) as error:
        next(batches)
    assert len(str(error.value).splitlines()) == 1
