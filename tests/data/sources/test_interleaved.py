"""Documents of texts and images in the layouts of OBELICS and MMC4, with images in rows, folders and tars."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.tars import png, write_tar
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources import image_store
from vlm_jax.data.sources.interleaved import Interleaved
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError

# Texts, and numbers for images.
DOCUMENTS = [["one", 1, "two", 2, 3], [4, "three\nlines"], ["only text"], [5], ["größe", 1, 1]]


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images/deep").mkdir(parents=True)
    for k in range(1, 6):
        (tmp_path / f"images/{name(k)}").write_bytes(png(k))
    return tmp_path / "images"


def name(k: int) -> str:
    return f"deep/{k}.png" if k == 4 else f"{k}.png"


def expected() -> list[list]:
    return [[png(part) if isinstance(part, int) else part for part in document] for document in DOCUMENTS]


def obelics(path, documents=DOCUMENTS, form: str = "struct") -> str:
    make = {"struct": lambda k: {"bytes": png(k), "path": name(k)}, "binary": png, "name": name}[form]
    rows = {
        "images": [[make(part) if isinstance(part, int) else None for part in d] for d in documents],
        "texts": [[part if isinstance(part, str) else None for part in d] for d in documents],
        "metadata": ["[]"] * len(documents),
    }
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        lines = [json.dumps({column: rows[column][k] for column in rows}) for k in range(len(documents))]
        path.write_text("\n".join(lines))
    else:
        pq.write_table(pa.table(rows), path, row_group_size=2, write_page_checksum=True)
    return str(path)


def mmc4(path, documents=DOCUMENTS) -> str:
    lines = []
    for document in documents:
        texts, info = [], []
        for part in document:
            if isinstance(part, str):
                texts.append(part)
            else:
                info.append({"image_name": name(part), "raw_url": "x", "matched_text_index": len(texts)})
        lines.append(json.dumps({"text_list": texts, "image_info": info[::-1], "url": "x"}))
    path.write_text("\n".join(lines))
    return str(path)


def parts(source) -> list[list]:
    return [source[k]["parts"] for k in range(len(source))]


@pytest.mark.parametrize("form", ["struct", "binary"])
def test_images_in_the_rows(tmp_path, storage, form):
    source = Interleaved(obelics(tmp_path / "x.parquet", form=form), storage=storage)
    assert parts(source) == expected()
    assert source[1]["key"] == "x.parquet:1" and source[1]["dropped"] == 0
    assert list(source.captions()) == ["one", "two", "three\nlines", "only text", "größe"]
    assert list(source.captions(2)) == ["one", "two"]
    assert parts(pickle.loads(pickle.dumps(source))) == expected()
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("where", ["folder", "tars", "bucket"])
def test_images_by_name(tmp_path, storage, images, kind, where):
    path = obelics(tmp_path / f"docs/x.{kind}", form="name")
    at = str(images)
    if where == "tars":
        write_tar(tmp_path / "tars/0.tar", [(f"./{name(k)}", png(k)) for k in (1, 2)])
        write_tar(tmp_path / "tars/1.tar", [(name(k), png(k)) for k in (3, 4, 5)])
        at = f"{tmp_path}/tars/*.tar"
    elif where == "bucket":
        fs, at = fsspec.filesystem("memory"), "memory:///images"
        for k in range(1, 6):
            fs.pipe(f"/images/{name(k)}", png(k))
    assert parts(Interleaved(path, images=at, storage=storage)) == expected()
    if where == "bucket":
        fs.rm("/images", recursive=True)


def test_images_before_their_sentence(tmp_path, storage, images):
    documents = [[1, "a", 2, 3, "b"], ["c", 4, "d"], ["e"]]
    source = Interleaved(mmc4(tmp_path / "x.jsonl", documents), layout="mmc4", images=str(images), storage=storage)
    found = parts(source)
    assert found[0] == [png(1), "a", png(3), png(2), "b"]  # two at one place, in the order of image_info
    assert found[1:] == [["c", png(4), "d"], ["e"]]


def test_several_files_skip_and_limit(tmp_path, storage):
    obelics(tmp_path / "docs/0.parquet", DOCUMENTS[:2])
    obelics(tmp_path / "docs/1.parquet", DOCUMENTS[2:])
    source = Interleaved(str(tmp_path / "docs"), skip=1, limit=3, storage=storage)
    assert parts(source) == expected()[1:4] and source[2]["key"] == "1.parquet:1"
    whole = Interleaved(str(tmp_path / "docs"), storage=storage)
    shutil.move(tmp_path / "docs", tmp_path / "moved")
    assert Interleaved(str(tmp_path / "moved"), storage=storage).fingerprint == whole.fingerprint != source.fingerprint


def test_images_that_are_not_there(tmp_path, storage, images):
    path = obelics(tmp_path / "x.parquet", form="name")
    (images / "2.png").unlink()
    with pytest.raises(UnreadableRecord, match=r"x\.parquet:0 is unreadable: there is no image 2\.png"):
        Interleaved(path, images=str(images), storage=storage)[0]
    source = Interleaved(path, images=str(images), missing="drop", storage=storage)
    assert source[0]["parts"] == ["one", png(1), "two", png(3)] and source[0]["dropped"] == 1
    write_tar(tmp_path / "x.tar", [("1.png", png(1))])
    source = Interleaved(path, images=str(tmp_path / "x.tar"), missing="drop", storage=storage)
    assert source[0]["parts"] == ["one", png(1), "two"] and source[0]["dropped"] == 2
    with pytest.raises(UnreadableRecord, match="the document is empty"):
        source[3]


def test_a_tar_of_images_is_indexed_once(tmp_path, storage, monkeypatch):
    path = obelics(tmp_path / "x.jsonl", form="name")
    write_tar(tmp_path / "x.tar", [(name(k), png(k)) for k in range(1, 6)])
    Interleaved(path, images=str(tmp_path / "x.tar"), storage=storage)
    monkeypatch.setattr(image_store, "make_name_index", lambda *_, **__: pytest.fail("indexed again"))
    assert parts(Interleaved(path, images=str(tmp_path / "x.tar"), storage=storage)) == expected()


@pytest.mark.parametrize(
    "layout, row, why",
    [
        ("obelics", {"images": ["1.png"], "texts": [None, "a"]}, "1 images and 2 texts"),
        ("obelics", {"images": ["1.png"], "texts": ["a"]}, "place 0 has not one of image and text"),
        ("obelics", {"images": [None], "texts": [None]}, "place 0 has not one"),
        ("obelics", {"images": [None], "texts": [3]}, "place 0 has not one"),
        ("obelics", {"images": None, "texts": ["a"]}, "not both lists"),
        ("obelics", {"images": [], "texts": []}, "the document is empty"),
        ("obelics", {"images": [None], "texts": [" "]}, "the document is empty"),
        ("obelics", {"images": [7], "texts": [None]}, "an image is '7'"),
        ("mmc4", {"image_info": [{"image_name": "1.png"}], "text_list": ["a"]}, "matched_text_index is None"),
        ("mmc4", {"image_info": [{"matched_text_index": 1}], "text_list": ["a"]}, "is 1, where there are 1 texts"),
        ("mmc4", {"image_info": [{"matched_text_index": 0}], "text_list": ["a"]}, "an image is 'None'"),
        ("mmc4", {"image_info": ["1.png"], "text_list": ["a"]}, "matched_text_index is None"),
        ("mmc4", {"image_info": [], "text_list": [1]}, "not a list of strings"),
    ],
)
def test_broken_documents(tmp_path, storage, images, layout, row, why):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    source = Interleaved(str(tmp_path / "x.jsonl"), layout=layout, images=str(images), storage=storage)
    with pytest.raises(UnreadableRecord, match=re.escape(why)) as error:
        source[0]
    assert error.value.key == "x.jsonl:0"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layout": "mcm4"}, "did you mean 'mmc4'"),
        ({"missing": "ignore"}, "valid choices: 'drop', 'refuse'"),
        ({"layout": "mmc4"}, "has no column 'image_info' (layout 'mmc4')"),
        ({}, "names its images and does not hold them"),
        ({"skip": 5}, "has 5 documents, none is left"),
        ({"limit": 0}, "limit >= 1"),
        ({"images": "nowhere/*.tar"}, "no file matches"),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_mistakes_are_named(tmp_path, storage, kind, options, message):
    path = obelics(tmp_path / f"x.{kind}", form="name")
    with pytest.raises(UserError) as error:
        Interleaved(path, storage=storage, **options)
    assert message.replace("'", "") in str(error.value).replace("'", "")


def test_a_damaged_tar_of_images(tmp_path, storage):
    path = obelics(tmp_path / "x.jsonl", form="name")
    tar = write_tar(tmp_path / "x.tar", [(name(k), png(k)) for k in range(1, 6)])
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"x\.tar: .*cut off"):
        Interleaved(path, images=str(tar), storage=storage)
