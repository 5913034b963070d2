"""WebDataset tars: read in any order, in every layout that is met, damaged, and by the million."""

from __future__ import annotations

import mmap
import pickle
import re

import fsspec
import numpy as np
import pytest

from tests.data.sources.tars import png, sample, value, write_tar
from tests.data.sources.threads import check_threads_and_copies
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import decode
from vlm_jax.data.index import MANY, Index, indexes
from vlm_jax.data.reader import Reader
from vlm_jax.data.sources import tar_index
from vlm_jax.data.sources import webdataset as module
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage, local_file
from vlm_jax.errors import UserError


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """20 samples in three shards."""
    shards = {"a/00000.tar": range(8), "a/00001.tar": range(8, 9), "b/00002.tar": range(9, 20)}
    for name, numbers in shards.items():
        write_tar(tmp_path / "tars" / name, [member for k in numbers for member in sample(k)])
    return tmp_path / "tars"


def test_samples_in_any_order(folder, storage):
    source = WebDataset(str(folder), storage=storage)
    assert len(source) == 20 and source.class_names == ()
    for index in np.random.default_rng(0).permutation(20).tolist() * 2:
        record = source[index]
        shard = 0 if index < 8 else 1 if index < 9 else 2
        assert value(record) == index
        assert record["text"] == [f"caption {index}\nsecond line {index}"]
        assert record["key"] == f"0000{shard}.tar:{index:09}" and "label" not in record
    for index in (20, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    "options, texts",
    [
        ({"text": ("txt",), "lines": True}, ["caption 5", "second line 5"]),
        ({"text": ("json:caption",)}, ["caption 5"]),
        ({"text": ("json:caption", "json:meta.alt")}, ["caption 5", "alt 5", "other 5"]),
        ({"text": ("json:nothing", "json:meta.alt")}, ["alt 5", "other 5"]),
        ({"text": ("json:meta.alt", "txt"), "lines": True}, ["alt 5", "other 5", "caption 5", "second line 5"]),
        ({"text": (), "label": "cls", "classes": ("cat", "dog", "owl")}, ["a photo of a owl."]),
        ({"text": (), "label": "json:label", "classes": ("a", "b", "c"), "templates": ("{}", "x {}")}, ["c", "x c"]),
    ],
)
def test_captions(folder, storage, options, texts):
    source = WebDataset(str(folder), storage=storage, **options)
    assert source[5]["text"] == texts
    if source.has_labels:
        assert source[5]["label"] == 2
        assert list(source.captions()) == [t.format(name) for name in source.classes for t in source.templates]
    else:
        assert list(source.captions(3 * len(texts)))[-len(texts) :] == [text.replace("5", "2") for text in texts]
        assert len(list(source.captions())) == 20 * len(texts)


def test_labels_beside_captions(folder, storage):
    record = WebDataset(str(folder), label="cls", storage=storage)[5]
    assert record["label"] == 2 and record["text"] == ["caption 5\nsecond line 5"]


def test_class_names_as_labels_and_in_a_file(tmp_path, storage):
    members = [(f"{k}.{ext}", data) for k in range(3) for ext, data in (("png", png(k)), ("cls", b"dog\n"))]
    path = write_tar(tmp_path / "tars" / "x.tar", members)
    (path.parent / "classes.txt").write_text("cat\ndog\n")
    source = WebDataset(str(path), text=(), label="cls", storage=storage)
    assert source.class_names == ("cat", "dog")
    assert source[2]["label"] == 1 and source[2]["text"] == ["a photo of a dog."]


def test_the_first_image_that_is_there(tmp_path, storage):
    path = write_tar(
        tmp_path / "x.tar", [("a.webp", png(1)), ("a.png", png(2)), ("a.txt", b"a"), ("a.seg.png", png(3))]
    )
    assert value(WebDataset(str(path), storage=storage)[0]) == 2
    assert value(WebDataset(str(path), image=("webp", "png"), storage=storage)[0]) == 1
    assert value(WebDataset(str(path), image=("seg.png",), storage=storage)[0]) == 3


def test_a_sample_is_one_read(folder, storage, monkeypatch):
    source = WebDataset(str(folder), text=("txt", "json:caption"), storage=storage)
    reads = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, *args, **more: reads.append(args) or read(self, *args, **more))
    source[3]
    assert len(reads) == 1
    monkeypatch.setattr(module, "NEAR", -1)
    assert source[3]["text"] == ["caption 3\nsecond line 3", "caption 3"] and len(reads) == 4
    reads.clear()
    list(source.captions(2))
    assert all(stop - start < 200 for _, start, stop in reads)  # no images


@pytest.mark.parametrize("index", [None, "beside", "folder"])
def test_tars_are_indexed_once(folder, storage, index, monkeypatch, tmp_path):
    index = str(tmp_path / "folder") if index == "folder" else index
    first = WebDataset(str(folder), storage=storage, index=index)
    monkeypatch.setattr(module, "make_tar_index", lambda *_, **__: pytest.fail("indexed again"))
    again = WebDataset(str(folder), storage=storage, index=index)
    assert [again[k] for k in range(20)] == [first[k] for k in range(20)]
    assert again.fingerprint == first.fingerprint


def test_many_tars_are_indexed_by_processes(tmp_path, storage, monkeypatch):
    count = MANY + 2
    for k in range(count):
        write_tar(tmp_path / f"tars/{k:03}.tar", sample(k))
    damaged = tmp_path / "tars/007.tar"
    damaged.write_bytes(damaged.read_bytes()[:2200])
    monkeypatch.setattr(tar_index, "members", lambda *_: pytest.fail("read by this process"))
    source = WebDataset(str(tmp_path / "tars"), damaged="skip", storage=storage)
    assert [value(source[k]) for k in range(count)] == list(range(count))
    ((path, _, why),) = source.problems
    assert path.endswith("007.tar") and "cut off" in why


def test_tars_of_a_bucket(folder, storage):
    fs = fsspec.filesystem("memory")
    for path in folder.rglob("*.tar"):
        fs.pipe(f"/wds/{path.name}", path.read_bytes())
    try:
        here = WebDataset(str(folder), storage=storage)
        there = WebDataset("memory:///wds/{00000..00002}.tar", storage=storage)
        assert [there[k] for k in range(20)] == [here[k] for k in range(20)]
        assert there.fingerprint == here.fingerprint
        assert list(there.captions()) == list(here.captions()) and len(list(there.captions(7))) == 7
        beside = WebDataset("memory:///wds", storage=storage, index="beside")
        assert beside[13] == here[13]
        assert len(fs.glob("/wds/*.tar1.index")) == 3
        other_machine = Storage(cache_dir=storage.cache_dir + "/other")
        assert WebDataset("memory:///wds", storage=other_machine, index="beside")[13] == here[13]
    finally:
        fs.rm("/wds", recursive=True)


def test_threads_and_copies_read_the_same(folder, storage):
    check_threads_and_copies(WebDataset(str(folder), storage=storage))


def test_skip_limit_and_fingerprint(folder, storage):
    part = WebDataset(str(folder), skip=7, limit=5, storage=storage)
    assert [value(part[k]) for k in range(len(part))] == [7, 8, 9, 10, 11]
    assert len(list(part.captions())) == 5
    whole = WebDataset(str(folder), storage=storage)
    moved = folder.rename(folder.parent / "moved")
    assert WebDataset(str(moved), storage=storage, index="beside").fingerprint == whole.fingerprint
    others = [
        part,
        WebDataset(str(moved / "a"), storage=storage),
        WebDataset(str(moved), storage=storage, lines=True),
        WebDataset(str(moved), storage=storage, text=("json:caption",)),
        WebDataset(str(moved), storage=storage, label="cls"),
    ]
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_unreadable_samples_name_file_and_key(tmp_path, storage):
    members = {
        "no_image": [("txt", b"a")],
        "zero_bytes": [("png", b""), ("txt", b"a")],
        "no_text": [("png", png(1))],
        "blank": [("png", png(1)), ("txt", b" \n")],
        "latin": [("png", png(1)), ("txt", b"caf\xe9")],
        "good": [("png", png(1)), ("txt", "\ufeffcafé".encode())],
    }
    path = write_tar(tmp_path / "x.tar", [(f"{k}.{ext}", d) for k, found in members.items() for ext, d in found])
    source = WebDataset(str(path), storage=storage)
    whys = [
        "no member .jpg or .jpeg or .png",
        ".png has no bytes",
        "no text",
        "no text",
        r".txt is not UTF-8: byte b'\xe9' at 3",
    ]
    for index, why in enumerate(whys):
        with pytest.raises(UnreadableRecord, match=re.escape(why)) as error:
            source[index]
        assert error.value.key == f"x.tar:{list(members)[index]}" and error.value.source == source.name
    assert source[5]["text"] == ["café"]
    assert list(source.captions()) == ["a", "a", "café"]


@pytest.mark.parametrize(
    "content, why",
    [
        (b"{", "is not JSON"),
        (b'{"caption": 3, "label": 1}', "json:caption is '3'"),
        (b'{"caption": ["a", {}], "label": 1}', "wanted is a string or a list of strings"),
        (b'["caption"]', "it has no class"),
        (b'{"caption": "a", "label": 7}', "label 7, where there are 3 classes"),
        (b'{"caption": "a", "label": "eel"}', "class 'eel', which is none of the 3 classes"),
        (b'{"caption": "a", "label": -1}', "label -1"),
        (b'{"caption": "a", "label": 1.5}', "class 1.5, which is none"),
    ],
)
def test_broken_descriptions(tmp_path, storage, content, why):
    path = write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("a.json", content)])
    options = {"text": ("json:caption",), "label": "json:label", "classes": ("cat", "dog", "owl")}
    with pytest.raises(UnreadableRecord, match=re.escape(why)):
        WebDataset(str(path), storage=storage, **options)[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-12_000])


def twice(path):
    write_tar(path, [*sample(9), *sample(10), *sample(9)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[5 * 512 * 8 + 3] ^= 16  # in the name of a member
    path.write_bytes(data)


DAMAGE = [
    (truncate, "cut off", 1),
    (lambda path: path.write_bytes(b""), "it is empty", 1),
    (lambda path: path.write_bytes(b"<html>"), "in the middle of a header", 1),
    (lambda path: path.write_bytes(b"<html>" * 1000), "is no tar file", 1),
    (lambda path: path.unlink(), "it is not there", 1),
    (twice, ":000000009: a second .png under this key", 4),
    (flip, "bytes were changed or lost before it", 1),
]


@pytest.mark.parametrize("damage, why, count", DAMAGE)
def test_damaged_tars_are_refused_or_skipped(folder, storage, damage, why, count, caplog):
    damage(folder / "b/00002.tar")
    path = f"{folder}/{{a/00000,a/00001,b/00002}}.tar"
    with pytest.raises(UserError, match=re.escape(why) if "not there" not in why else "are not there") as error:
        WebDataset(path, storage=storage)
    assert "00002.tar" in str(error.value) and len(str(error.value).splitlines()) == 1
    source = WebDataset(path, damaged="skip", storage=storage)
    assert "00002.tar" in caplog.text and f"problems: {count};" in caplog.text
    assert 9 <= len(source) < 20
    assert all(value(source[k]) == k for k in range(9))
    assert source.problems[0][0].endswith("00002.tar")
    assert why.rpartition(": ")[2] in source.problems[0][2]


def test_flipped_bits_in_an_image(folder, storage):
    source = WebDataset(str(folder), storage=storage)
    (file,) = [path for path in folder.rglob("00001.tar")]
    data = bytearray(file.read_bytes())
    at = data.index(b"IHDR")
    data[at + 5] ^= 255
    file.write_bytes(data)
    with pytest.raises(UnreadableRecord, match=r"00001\.tar:000000008"):
        Reader(source, decode)(8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": ("text",)}, "has no .text members (text): did you mean 'txt'?"),
        ({"image": ("jpg",)}, "has no .jpg members (image)"),
        ({"label": "class"}, "has no .class members (label): did you mean 'cls'?"),
        ({"text": ()}, "has neither captions nor class names"),
        ({"text": (), "label": "cls"}, "has neither captions nor class names"),
        ({"damaged": "ignore"}, "valid choices: 'refuse', 'skip'"),
        ({"skip": 20}, "has 20 records, none is left after skip=20"),
        ({"skip": -1}, "skip >= 0"),
        ({"limit": 0}, "limit >= 1"),
        ({"templates": ("a photo",)}, "one '{}'"),
        ({"text": "txt"}, "WebDataset.text='txt': wanted is a tuple, ('txt',)."),
        ({"index": "/dev/null/x"}, "cannot be written"),
    ],
)
def test_mistakes_are_named(folder, storage, options, message):
    with pytest.raises(UserError) as error:
        WebDataset(str(folder), storage=storage, **options)
    assert message.replace("'", "") in str(error.value).replace("'", "")
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_source(tmp_path, storage):
    with pytest.raises(UserError, match="has 0 records"):
        WebDataset(str(write_tar(tmp_path / "x.tar", [])), storage=storage)


def write_large_index(tmp_path, storage, samples: int) -> WebDataset:
    """A tar with one sample, and an index that says it holds millions, all at the same place."""
    path = write_tar(tmp_path / "x.tar", sample(7)[:2])
    file = local_file(path)
    small = tar_index.make_tar_index(file, storage)
    members = len(small.arrays["offset"])
    names = [f"{k:09}".encode() for k in range(1000)]
    arrays = {
        "first": np.arange(samples + 1) * members,
        **{name: np.tile(small.arrays[name], samples) for name in ("offset", "size", "extension")},
        "keys": np.tile(np.frombuffer(b"".join(names), np.uint8), -(-samples // 1000))[: 9 * samples],
        "key_ends": 9 * np.arange(1, samples + 1),
    }
    indexes([file], tar_index.KIND, lambda _: Index(small.meta, arrays), storage)
    return WebDataset(str(path), storage=storage)


def check_large_index(tmp_path, storage, samples: int) -> None:
    source = pickle.loads(pickle.dumps(write_large_index(tmp_path, storage, samples)))
    assert len(source) == samples
    assert value(source[samples - 1]) == 7
    assert source[samples - 1]["key"] == f"x.tar:{(samples - 1) % 1000:09}"
    (index,) = source._indexes
    assert sum(array.nbytes for array in index.arrays.values()) > 50 * samples
    for array in index.arrays.values():
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, mmap.mmap)  # pages that the system reads when they are looked at


def test_an_index_is_opened_and_not_read(tmp_path, storage):
    check_large_index(tmp_path, storage, 20_000)


@pytest.mark.full
def test_an_index_of_ten_million_is_opened_and_not_read(tmp_path, storage):
    check_large_index(tmp_path, storage, 10_000_000)
