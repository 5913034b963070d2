"""Indexes: made once for a version of a file, and never in the way of a run."""

from __future__ import annotations

import os
import threading

import fsspec
import numpy as np
import pytest

from vlm_jax.data import index as module
from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, from_file, indexes, to_bytes
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    for k in range(5):
        (tmp_path / f"{k}.bin").write_bytes(bytes([k]) * (k + 1))
    return find_files(f"{tmp_path}/*.bin", (".bin",))


class Make:
    """Indexes that say what the file holds, and how many were made."""

    def __init__(self):
        self.made = []

    def __call__(self, file):
        self.made.append(file.name)
        with fsspec.open(file.path, "rb") as opened:
            return Index({"name": file.name}, {"bytes": np.frombuffer(opened.read(), np.uint8), "none": np.empty(0)})


def check(found, files):
    assert [index.meta["name"] for index in found] == [file.name for file in files]
    for k, index in enumerate(found):
        assert index.arrays["bytes"].tolist() == [k] * (k + 1) and index.arrays["none"].size == 0


@pytest.mark.parametrize("folder", [None, "beside", "indexes", "memory:///indexes"])
def test_made_once(tmp_path, files, storage, folder):
    folder = str(tmp_path / folder) if folder == "indexes" else folder
    make = Make()
    for _ in range(3):
        check(indexes(files, "k", make, storage, folder), files)
    assert sorted(make.made) == [file.name for file in files]
    assert find_files(f"{tmp_path}/*.bin", (".bin",)) == files
    if folder == "memory:///indexes":
        assert len(fsspec.filesystem("memory").find("/indexes")) == 5
        fsspec.filesystem("memory").rm("/indexes", recursive=True)


def test_made_again_for_another_version_or_kind(tmp_path, files, storage):
    make = Make()
    indexes(files, "k", make, storage, "beside")
    os.utime(files[2].path, ns=(1, 1))
    files = find_files(f"{tmp_path}/*.bin", (".bin",))
    make.made.clear()
    indexes(files, "k", make, storage, "beside")
    assert make.made == ["2.bin"]
    indexes(files, "other", make, storage, "beside")
    assert len(make.made) == 6


def test_files_of_the_same_name_have_their_own(tmp_path, storage):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.bin").write_bytes(folder.encode())
    files = find_files(f"{tmp_path}/?/x.bin", (".bin",))
    for _ in range(2):
        found = indexes(files, "k", Make(), storage)
        assert [bytes(index.arrays["bytes"]) for index in found] == [b"a", b"b"]


def test_names_that_no_file_can_have(storage):
    fs = fsspec.filesystem("memory")
    name = "x.bin?signature=" + "a/b%" * 200
    file = module.File(f"memory:///{name}", 3, "1")
    fs.pipe(f"/{name}", b"abc")
    make = Make()
    for _ in range(2):
        indexes([file], "k", make, storage)
    assert len(make.made) == 1
    fs.rm(f"/{name}")


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None, "cut", "header"])
def test_a_damaged_index_is_made_again(files, storage, damage):
    make = Make()
    indexes(files, "k", make, storage, "beside")
    path = f"{files[3].path}.k.index"
    data = open(path, "rb").read()
    damage = {None: data + b"x", "cut": data[:-1], "header": data[:24] + b"\xff" * 20 + data[44:]}.get(damage, damage)
    open(path, "wb").write(damage)
    make.made.clear()
    check(indexes(files, "k", make, storage, "beside"), files)
    assert make.made == ["3.bin"] and open(path, "rb").read() == data


def test_arrays_are_mapped(tmp_path):
    arrays = {"a": np.arange(10**6), "b": np.ones((3, 4), np.float32), "c": np.array([1, 2], np.uint8)}
    (tmp_path / "x").write_bytes(to_bytes(Index({"k": 1}, arrays)))
    index = from_file(tmp_path / "x")
    assert index.meta == {"k": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(index.arrays[name], array)
        assert index.arrays[name].dtype == array.dtype
        base = index.arrays[name]
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert not isinstance(base, np.ndarray)  # the pages of the file
        assert not index.arrays[name].flags.writeable


def test_an_interruption_keeps_what_was_made(files, storage):
    make = Make()

    def stops(file):
        if file.name == "3.bin":
            raise KeyboardInterrupt
        return make(file)

    with pytest.raises(KeyboardInterrupt):
        indexes(files, "k", stops, storage)
    made = set(make.made)
    check(indexes(files, "k", make, storage), files)
    assert made and sorted(make.made) == [file.name for file in files]


def test_a_failure_is_the_callers(files, storage):
    def fails(file):
        raise UserError(f"{file.path} is broken")

    with pytest.raises(UserError, match="is broken"):
        indexes(files, "k", fails, storage)


def test_several_are_made_at_a_time(files, storage, monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 5)
    together = threading.Barrier(5, timeout=30)
    make = Make()
    check(indexes(files, "k", lambda file: (together.wait(), make(file))[1], storage), files)


def where_it_was_made(file) -> Index:
    if file.name == "damaged.bin":
        raise UserError(f"{file.path} is broken")
    if file.name == "fatal.bin":
        os._exit(9)
    return Index({"pid": os.getpid(), "name": file.name}, {"bytes": np.fromfile(file.path, np.uint8)})


@pytest.mark.parametrize("count", [module.MANY - 1, module.MANY + 3])
def test_those_of_many_files_are_made_in_processes(tmp_path, storage, count, monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    for k in range(count):
        (tmp_path / f"{k:02}.bin").write_bytes(bytes([k]))
    files = find_files(str(tmp_path), (".bin",))
    found = indexes(files, "k", where_it_was_made, storage, processes=True)
    assert [index.meta["name"] for index in found] == [file.name for file in files]
    assert [index.arrays["bytes"].tolist() for index in found] == [[k] for k in range(count)]
    elsewhere = {index.meta["pid"] for index in found} - {os.getpid()}
    assert 1 <= len(elsewhere) <= 2 if count > module.MANY else not elsewhere
    (tmp_path / "damaged.bin").touch()
    with pytest.raises(UserError, match=r"damaged\.bin is broken"):
        indexes(find_files(str(tmp_path), (".bin",)), "other", where_it_was_made, storage, processes=True)
    (tmp_path / "damaged.bin").rename(tmp_path / "fatal.bin")
    if count > module.MANY:
        with pytest.raises(UserError, match=r"was not indexed: a subprocess ended with code 9; start again"):
            indexes(find_files(str(tmp_path), (".bin",)), "third", where_it_was_made, storage, processes=True)


def test_a_cache_that_cannot_be_written(tmp_path, files):
    (tmp_path / "file").touch()
    make = Make()
    for _ in range(2):
        check(indexes(files, "k", make, Storage(cache_dir=str(tmp_path / "file"))), files)
    assert len(make.made) == 10
    with pytest.raises(UserError, match="choose another folder"):
        indexes(files, "k", make, Storage(), str(tmp_path / "file"))


def test_progress_is_told(files, storage, capsys):
    indexes(files, "k", Make(), storage)
    assert capsys.readouterr().err.splitlines() == [f"indexing k: {n} of 5" for n in range(1, 6)]
    indexes(files, "k", Make(), storage)
    assert capsys.readouterr().err == ""
