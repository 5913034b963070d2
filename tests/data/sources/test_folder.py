"""Folders of images: captions beside them, classes by folder, and files that come and go."""

from __future__ import annotations

import os
import pickle
import re

import fsspec
import pytest

from tests.data.sources.tars import png, value
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources import folder as module
from vlm_jax.data.sources.folder import Folder
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError

NAMES = ["0.png", "1.PNG", "cat/2.png", "cat/sub/3.png", "cat-like/4.png", "dög/5.png"]


def write(root, names=NAMES) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int(path.stem)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(f"caption {number}\nsecond {number}\n")
    (root / ".thumbnails").mkdir(exist_ok=True)
    (root / ".thumbnails/9.png").write_bytes(png(9))
    (root / "cat/._2.png").write_bytes(b"what a Mac leaves")
    (root / "notes.md").write_text("x")


@pytest.fixture
def images(tmp_path):
    write(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


ORDER = ["0.png", "1.PNG", "cat/2.png", "cat/sub/3.png", "cat-like/4.png", "dög/5.png"]


def test_captions_beside_the_images(images, storage):
    source = Folder(str(images), storage=storage)
    assert [source[k]["key"] for k in range(len(source))] == ORDER
    assert [value(source[k]) for k in range(len(source))] == [0, 1, 2, 3, 4, 5]
    assert source[3]["text"] == ["caption 3\nsecond 3"] and source.class_names == ()
    assert Folder(str(images), lines=True, storage=storage)[3]["text"] == ["caption 3", "second 3"]
    assert list(source.captions(2)) == ["caption 0\nsecond 0", "caption 1\nsecond 1"]
    part = Folder(str(images), skip=2, limit=2, storage=storage)
    assert [value(part[k]) for k in range(len(part))] == [2, 3]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[k] for k in range(6)] == [source[k] for k in range(6)]


def test_class_folders(tmp_path, storage):
    write(tmp_path / "images", NAMES[2:])
    (tmp_path / "images/empty").mkdir()
    source = Folder(str(tmp_path / "images"), text=None, class_folders=True, storage=storage)
    assert source.class_names == ("cat", "cat-like", "dög")
    assert [source[k]["label"] for k in range(4)] == [0, 0, 1, 2]
    assert source[3]["text"] == ["a photo of a dög."]
    given = Folder(str(tmp_path / "images"), text=None, class_folders=True, classes=("dög", "cat"), storage=storage)
    assert given[0]["label"] == 1
    with pytest.raises(UnreadableRecord, match="class 'cat-like', which is none of the 2 classes"):
        given[2]


def test_an_image_outside_the_class_folders(images, storage):
    source = Folder(str(images), text=None, class_folders=True, storage=storage)
    with pytest.raises(UnreadableRecord, match=r"0\.png is unreadable: it has no class"):
        source[0]


def test_names_are_listed_once_until_files_come_or_go(images, storage, monkeypatch):
    listed = []
    monkeypatch.setattr(module, "_local_index", lambda file, make=module._local_index: listed.append(1) or make(file))
    fingerprints = {Folder(str(images), storage=storage).fingerprint for _ in range(2)}
    assert len(listed) == 1 and len(fingerprints) == 1
    write(images, ["cat/sub/6.png"])
    more = Folder(str(images), storage=storage)
    assert len(listed) == 2 and len(more) == 7 and more.fingerprint not in fingerprints
    (images / "cat/sub/6.png").unlink()
    (images / "cat/sub/6.txt").unlink()
    assert Folder(str(images), storage=storage).fingerprint in fingerprints
    (images / "cat/sub/deep").mkdir()
    (images / "cat/sub/deep/7.png").write_bytes(png(7))
    assert len(Folder(str(images), storage=storage)) == 7


def test_folders_of_a_bucket(images, storage):
    fs = fsspec.filesystem("memory")
    for path in images.rglob("*"):
        if path.is_file():
            fs.pipe(f"/images/{path.relative_to(images)}", path.read_bytes())
    try:
        here, there = Folder(str(images), storage=storage), Folder("memory:///images", storage=storage)
        assert [there[k] for k in range(6)] == [here[k] for k in range(6)]
        assert there.fingerprint == here.fingerprint
    finally:
        fs.rm("/images", recursive=True)


def test_unreadable_records(images, storage):
    (images / "0.txt").unlink()
    (images / "1.txt").write_bytes(b"\xff\xfe")
    (images / "cat/2.png").write_bytes(b"")
    source = Folder(str(images), storage=storage)
    (images / "cat/sub/3.png").unlink()
    whys = ("there is no file 0.txt", "1.txt is not UTF-8", "no bytes", "there is no file cat/sub/3.png")
    for index, why in enumerate(whys):
        with pytest.raises(UnreadableRecord, match=re.escape(why)) as error:
            source[index]
        assert error.value.key == ORDER[index]
    assert value(source[4]) == 4


def test_a_name_that_is_no_utf_8(tmp_path, storage):
    (tmp_path / "images").mkdir()
    path = os.path.join(os.fsencode(tmp_path / "images"), b"\xff.png")
    for name, data in ((path, png(3)), (path[:-4] + b".txt", b"three")):
        with open(name, "wb") as file:
            file.write(data)
    record = Folder(str(tmp_path / "images"), storage=storage)[0]
    assert value(record) == 3 and record["text"] == ["three"] and record["key"] == r"\udcff.png"


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("imagse", {}, "did you mean 'images'"),
        ("images/0.png", {}, "is a file: give the folder"),
        ("images", {"text": "caption"}, "has no .caption files beside its images"),
        ("lists", {}, ".jsonl files are read by Listing"),
        ("none", {}, "has 0 records"),
        ("images", {"text": None}, "neither captions nor class names"),
        ("lists", {"text": None, "class_folders": True}, "neither captions nor class names"),
    ],
)
def test_mistakes_are_named(images, storage, path, options, message):
    (images.parent / "none").mkdir()
    (images.parent / "lists").mkdir()
    (images.parent / "lists/metadata.jsonl").touch()
    (images.parent / "lists/0.png").touch()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Folder(str(images.parent / path), storage=storage, **options)
    assert len(str(error.value).splitlines()) == 1
