"""Damaged files of every format: refused with a line that names the file, or left out, counted and named as asked."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import threading

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from tests.data.sources.tars import png, write_tar
from vlm_jax.data import reader
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.array_record import ArrayRecord
from vlm_jax.data.sources.example_proto import encode_example
from vlm_jax.data.sources.folder import Folder
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

RECORDS = 6  # of a shard


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_jax.data.storage.time.sleep", lambda _: None)
    monkeypatch.setattr(reader, "RETRY_SECONDS", (0.0, 0.0))
    return Storage(cache_dir=str(tmp_path / "cache"), tries=2)


def tar(path: pathlib.Path, records: range) -> None:
    members = [(f"{k:03}.{ext}", data) for k in records for ext, data in (("png", png(k)), ("txt", b"caption"))]
    write_tar(path, members)


def array_record(path: pathlib.Path, records: range) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for k in records:
        writer.write(encode_example({"image": png(k), "text": "caption"}))
    writer.close()


def parquet(path: pathlib.Path, records: range) -> None:
    images = pa.array([png(k) for k in records], pa.binary())
    pq.write_table(pa.table({"image": images, "text": pa.array(["caption"] * len(records), pa.string())}), path)


def listing(path: pathlib.Path, records: range) -> None:
    for k in records:
        (path.parent / f"{k}.png").write_bytes(png(k))
    path.write_text("".join(f'{{"file_name": "{k}.png", "text": "caption"}}\n' for k in records))


def folder(path: pathlib.Path, records: range) -> None:
    path.mkdir()
    for k in records:
        (path / f"{k}.png").write_bytes(png(k))
        (path / f"{k}.txt").write_text("caption")


# Format -> what writes a shard, its suffix, and what reads it.
FORMATS = {
    "tar": (tar, ".tar", WebDataset),
    "array_record": (array_record, ".array_record", ArrayRecord),
    "parquet": (parquet, ".parquet", lambda path, **options: Parquet(path, text_column="text", **options)),
    "listing": (listing, ".jsonl", Listing),
    "folder": (folder, "", Folder),
}
SHARDED = ("tar", "array_record", "parquet")


def shards(where: pathlib.Path, kind: str) -> list[pathlib.Path]:
    write, suffix, _ = FORMATS[kind]
    where.mkdir()
    paths = [where / f"{shard:05}{suffix}" for shard in range(3)]
    for shard, path in enumerate(paths):
        write(path, range(shard * RECORDS, (shard + 1) * RECORDS))
    return paths


def batches_of(source, **options):
    pipeline = Pipeline(source, ImageTransform(size=4), Text(length=8), threads=0, **options)
    return pipeline, pipeline.batches(seed=0, batch_size=9, rows=np.arange(9))


HOW = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 100]),
    "no bytes": lambda path: path.write_bytes(b""),
    "HTML": lambda path: path.write_bytes(b"<html>404 Not Found</html>" * 400),
    "missing": pathlib.Path.unlink,
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", SHARDED)
def test_a_damaged_shard_is_refused(tmp_path, storage, kind, how):
    shard = shards(tmp_path / "data", kind)[1]
    HOW[how](shard)
    _, suffix, source = FORMATS[kind]
    with pytest.raises(UserError) as error:
        source(f"{tmp_path}/data/{{00000..00002}}{suffix}", storage=storage)
    assert shard.name in str(error.value) and len(str(error.value).splitlines()) == 1


def twice(path: pathlib.Path) -> None:
    members = [(f"{k:03}.{ext}", data) for k in (6, 7, 6) for ext, data in (("png", png(k)), ("txt", b"caption"))]
    write_tar(path, members)


# What is left out of the second of three tars, and how many samples of all are left.
LEFT_OUT = {
    "cut off": (HOW["cut off"], [r"00001\.tar: .*cut off"], 5),
    "no bytes": (HOW["no bytes"], [r"00001\.tar: it is empty"], 0),
    "HTML": (HOW["HTML"], [r"00001\.tar: .*no tar file"], 0),
    "missing": (HOW["missing"], [r"00001\.tar: it is not there"], 0),
    "a duplicate key": (twice, [r"00001\.tar:006: a second \.png", r"00001\.tar:006: a second \.txt"], 2),
}


@pytest.mark.parametrize("how", LEFT_OUT)
def test_a_damaged_tar_is_left_out_counted_and_named(tmp_path, storage, how):
    damage, told, left = LEFT_OUT[how]
    damage(shards(tmp_path / "data", "tar")[1])
    source = WebDataset(f"{tmp_path}/data/{{00000..00002}}.tar", damaged="skip", storage=storage)
    other = WebDataset(f"{tmp_path}/data/00000.tar", storage=storage)
    mixture = Mixture({"damaged": Part(source), "whole": Part(other)})
    for data in (source, mixture):
        pipeline, batches = batches_of(data, shuffle=False)
        values = np.concatenate([next(batches)["image"][:, 0, 0, 0] for _ in range(4)])
        state, metrics = batches.state(), batches.metrics()
        batches.close()
        assert metrics["damaged"] == pipeline.damaged == len(told) and len(pipeline.damage) == len(told)
        for line, wanted in zip(sorted(pipeline.damage), told):
            assert re.search(wanted, line), line
    assert set(values.tolist()) >= {*range(RECORDS), *range(2 * RECORDS, 3 * RECORDS)}
    assert len(source) == 2 * RECORDS + left and state["unreadable"] == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_an_empty_source_is_refused(tmp_path, storage, kind):
    write, suffix, source = FORMATS[kind]
    path = tmp_path / f"empty{suffix}"
    write(path, range(0))
    with pytest.raises(UserError, match=r"empty\S* has 0 (records|rows)"):
        source(str(path), storage=storage)


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("how", [lambda path: path.write_bytes(path.read_bytes()[:100]), pathlib.Path.unlink])
def test_a_shard_that_goes_while_it_is_read_stops_the_run(tmp_path, storage, kind, how):
    """An error of storage says nothing of the records: none is skipped."""
    paths = shards(tmp_path / "data", kind)
    _, batches = batches_of(FORMATS[kind][2](f"{tmp_path}/data", storage=storage), shuffle=False)
    how(paths[2])
    values = next(batches)["image"][:, 0, 0, 0].tolist()
    with pytest.raises(UserError) as error:
        for _ in range(2):
            values += next(batches)["image"][:, 0, 0, 0].tolist()
    assert values == list(range(9)) and paths[2].name in str(error.value)
    assert batches.state()["unreadable"] == 0


# When a bucket falls silent -> what of it, and the formats that ask it then: an ArrayRecord file is fetched whole.
SILENT = {
    "found": (("find", "glob", "info", "ls"), FORMATS),
    "indexed": (("cat_file",), ("tar", "array_record", "parquet", "listing")),
    "read": (("info", "cat_file"), ("tar", "parquet", "listing", "folder")),
}


@pytest.mark.parametrize("when, kind", [(when, kind) for when, (_, kinds) in SILENT.items() for kind in kinds])
def test_a_bucket_that_does_not_answer_stops_the_run_with_a_line(tmp_path, storage, when, kind, monkeypatch):
    write, suffix, source = FORMATS[kind]
    write(tmp_path / f"x{suffix}", range(RECORDS))
    fs, silent = fsspec.filesystem("memory"), threading.Event()
    fs.put(f"{tmp_path}/", "/slow/", recursive=True)
    impatient = dataclasses.replace(storage, timeout_s=0.05, cache_dir=str(tmp_path / "new"))
    opened = source(f"memory:///slow/x{suffix}", storage=dataclasses.replace(storage, timeout_s=0.05))
    for name in SILENT[when][0]:
        monkeypatch.setattr(type(fs), name, lambda *_, **__: silent.wait(60))
    try:
        with pytest.raises(UserError, match=r"slow\S* cannot be read after 2 tries \(no answer in 0\.05 s\)") as error:
            if when == "read":
                _, batches = batches_of(opened)
                next(batches)
            else:
                source(f"memory:///slow/x{suffix}", storage=impatient)
        assert len(str(error.value).splitlines()) == 1
    finally:
        silent.set()
        monkeypatch.undo()
        fs.rm("/slow", recursive=True)
