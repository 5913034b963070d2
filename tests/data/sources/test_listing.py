"""Rows of JSONL, CSV and TSV that name images, in every form in which they are met."""

from __future__ import annotations

import csv
import json
import pickle
import re

import fsspec
import numpy as np
import pytest

from tests.data.sources.tars import png, value
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources import text_table as module
from vlm_jax.data.sources.listing import Listing
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError

CAPTIONS = ["plain", 'a "quoted" word', "two\nlines", "comma, and ;", "größe 大", "tab\there", "'", "x" * 300]


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    for k in range(len(CAPTIONS)):
        (tmp_path / f"data/images/{k}.png").write_bytes(png(k))
    return tmp_path / "data"


def write(folder, kind: str, end: str = "\n", rows=None) -> str:
    rows = [(f"images/{k}.png", text, k % 2) for k, text in enumerate(CAPTIONS)] if rows is None else rows
    path = folder / f"metadata.{kind}"
    with open(path, "w", newline="") as file:
        if kind == "jsonl":
            lines = [json.dumps({"file_name": n, "text": t, "label": c}) for n, t, c in rows]
            file.write(end.join(lines) + end)
        else:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",", lineterminator=end)
            writer.writerows([("file_name", "text", "label"), *rows])
    return str(path)


@pytest.mark.parametrize("piece", [2**24, 7])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_rows_in_any_order(folder, storage, kind, end, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    source = Listing(write(folder, kind, end), storage=storage)
    assert len(source) == len(CAPTIONS)
    for index in np.random.default_rng(0).permutation(len(CAPTIONS)).tolist():
        record = source[index]
        assert value(record) == index and record["text"] == [CAPTIONS[index]]
        assert record["key"] == f"metadata.{kind}:{index}" and "label" not in record
    assert list(source.captions()) == CAPTIONS
    assert list(pickle.loads(pickle.dumps(source)).captions()) == CAPTIONS
    assert Listing(source.path, skip=2, limit=1, storage=storage)[0]["text"] == [CAPTIONS[2]]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_blank_lines_a_byte_order_mark_and_no_last_line_end(folder, storage, kind):
    path = write(folder, kind)
    text = open(path, newline="").read().rstrip("\n")
    first, rest = text.split("\n", 1)
    open(path, "w", newline="").write(f"\ufeff{first}\n\n\r\n{rest}")
    assert list(Listing(path, storage=storage).captions()) == CAPTIONS


def test_labels(folder, storage):
    for kind in ("jsonl", "csv"):
        options = {"text": (), "label": "label", "classes": ("cat", "dog"), "storage": storage}
        source = Listing(write(folder, kind), **options)
        assert [source[k]["label"] for k in range(3)] == [0, 1, 0] and source[1]["text"] == ["a photo of a dog."]
    rows = [("images/0.png", "", "dog"), ("images/1.png", "", "eel")]
    named = Listing(write(folder, "csv", rows=rows), **options)
    assert named[0]["label"] == 1
    with pytest.raises(UnreadableRecord, match="class 'eel'"):
        named[1]


def test_captions_in_several_places(folder, storage):
    row = {"image": "images/3.png", "captions": ["a", None, "b"], "meta": {"alt": "c"}}
    (folder / "x.jsonl").write_text(json.dumps(row))
    source = Listing(str(folder / "x.jsonl"), image="image", text=("captions", "meta.alt"), storage=storage)
    assert source[0]["text"] == ["a", "b", "c"] and value(source[0]) == 3


def test_several_lists_and_where_images_are(folder, storage, tmp_path):
    for part, numbers in (("train", (0, 1)), ("val", (2,))):
        (folder / part).mkdir()
        for k in numbers:
            (folder / f"images/{k}.png").rename(folder / part / f"{k}.png")
        write(folder / part, "jsonl", rows=[(f"{k}.png", f"c {k}", 0) for k in numbers])
    source = Listing(f"{folder}/*/metadata.jsonl", storage=storage)
    assert [value(source[k]) for k in range(3)] == [0, 1, 2]
    away = write(tmp_path, "jsonl", rows=[("3.png", "c", 0), (f"{folder}/images/4.png", "c", 0)])
    source = Listing(away, root=f"{folder}/images", storage=storage)
    assert [value(source[k]) for k in range(2)] == [3, 4]


def test_lists_of_buckets(folder, storage):
    path = write(folder, "jsonl")
    fs = fsspec.filesystem("memory")
    fs.pipe("/list/metadata.jsonl", open(path, "rb").read())
    for image in (folder / "images").iterdir():
        fs.pipe(f"/list/images/{image.name}", image.read_bytes())
    try:
        here, there = Listing(path, storage=storage), Listing("memory:///list/metadata.jsonl", storage=storage)
        assert [there[k] for k in range(8)] == [here[k] for k in range(8)]
        assert there.fingerprint == here.fingerprint
        urls = write(folder, "csv", rows=[("memory:///list/images/5.png", "five", 0)])
        assert value(Listing(urls, storage=storage)[0]) == 5
    finally:
        fs.rm("/list", recursive=True)


def test_unreadable_rows(folder, storage):
    lines = [
        '{"file_name": "images/0.png", "text": "a"}',
        '{"file_name": "images/99.png", "text": "a"}',
        '{"file_name": "images/0.png", "text": 3}',
        '{"file_name": "images/0.png", "text": ""}',
        '{"file_name": null, "text": "a"}',
        "[1, 2]",
        '{"file_name": "images/0.png", ',
    ]
    (folder / "x.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}')
    source = Listing(str(folder / "x.jsonl"), storage=storage)
    whys = ["", "there is no file", "text is '3'", "no text", "'file_name' is None", "wanted is a JSON object"]
    for index, why in enumerate([*whys, "is not JSON", "is not UTF-8"]):
        if why:
            with pytest.raises(UnreadableRecord, match=why) as error:
                source[index]
            assert error.value.key == f"x.jsonl:{index}"
    assert list(source.captions()) == ["a", "a", "a"]
    (folder / "x.csv").write_text("file_name,text\nimages/0.png\nimages/1.png,a,b\nimages/2.png,fine\n")
    source = Listing(str(folder / "x.csv"), storage=storage)
    for index, count in ((0, 1), (1, 3)):
        with pytest.raises(UnreadableRecord, match=f"{count} values for 2 columns"):
            source[index]
    assert source[2]["text"] == ["fine"]


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("x.jsonl", '{"file_nam": "x", "text": ""}', {}, "has no column 'file_name' (image): did you mean 'file_nam'"),
        ("x.csv", "file_name,caption\na,b\n", {}, "has no column 'text' (text)"),
        ("x.csv", "file_name,text\na,b\n", {"label": "class"}, "has no column 'class' (label)"),
        ("x.jsonl", "<html>", {}, "the row is not JSON"),
        ("x.jsonl", "", {}, "has 0 records"),
        ("x.csv", "", {}, "has 0 records"),
        ("x.csv", "file_name,text\n", {}, "has 0 records"),
        ("x.csv", 'file_name,text\na,"b\n', {}, "a quote that is never closed"),
        ("x.parquet", "x", {}, "is none of .jsonl, .ndjson, .csv, .tsv"),
        ("x.csv", "file_name,text\na,b\n", {"text": ()}, "neither captions nor class names"),
    ],
)
def test_mistakes_are_named(tmp_path, storage, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Listing(str(tmp_path / name), storage=storage, **options)
    assert len(str(error.value).splitlines()) == 1


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(folder, storage):
    path = write(folder, "jsonl")
    before = Listing(path, storage=storage).fingerprint
    moved = folder.rename(folder.parent / "moved")
    again = Listing(f"{moved}/metadata.jsonl", index="beside", storage=storage)
    assert again.fingerprint == before and (moved / "metadata.jsonl.rows1.index").exists()
    assert Listing(f"{moved}/metadata.jsonl", limit=3, storage=storage).fingerprint != before
