"""Which files a path means, here and in buckets."""

from __future__ import annotations

import re

import fsspec
import pytest

from vlm_jax.data.files import expand_braces, find_files
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError

TAR = (".tar",)


@pytest.fixture
def folder(tmp_path):
    for name in ("a/00.tar", "a/01.tar", "a/02.tar", "b/x.tar", "b/x.txt", ".hidden/y.tar", "b/[1]{2}.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def bucket():
    """The same files in the memory of this process, by URL."""
    fs = fsspec.filesystem("memory")
    for name in ("a/00.tar", "a/01.tar", "a/02.tar", "b/x.tar", "b/x.txt"):
        fs.pipe(f"/bucket/{name}", name.encode())
    yield "memory:///bucket"
    fs.rm("/bucket", recursive=True)


PATTERNS = [
    ("a/00.tar", ["a/00.tar"]),
    ("a", ["a/00.tar", "a/01.tar", "a/02.tar"]),
    ("a/", ["a/00.tar", "a/01.tar", "a/02.tar"]),
    ("*/0[01].tar", ["a/00.tar", "a/01.tar"]),
    ("a/{00..02}.tar", ["a/00.tar", "a/01.tar", "a/02.tar"]),
    ("a/{02,00,00}.tar", ["a/00.tar", "a/02.tar"]),
    ("{a/01,b/x}.tar", ["a/01.tar", "b/x.tar"]),
    ("{a/0?,b/*}.tar", ["a/00.tar", "a/01.tar", "a/02.tar", "b/x.tar"]),
    ("b/x.txt", ["b/x.txt"]),
]


@pytest.mark.parametrize("pattern, names", PATTERNS, ids=lambda value: value if isinstance(value, str) else "")
def test_files_of_this_machine(folder, pattern, names):
    (folder / "b/[1]{2}.tar").unlink()
    files = find_files(f"{folder}/{pattern}", TAR)
    assert [file.path for file in files] == [f"{folder}/{name}" for name in names]
    assert [file.size for file in files] == [len(name) for name in names]
    assert all(file.version and not file.remote for file in files)
    assert find_files(f"file://{folder}/{pattern}", TAR) == files


@pytest.mark.parametrize("pattern, names", PATTERNS, ids=lambda value: value if isinstance(value, str) else "")
def test_files_of_a_bucket(bucket, pattern, names):
    files = find_files(f"{bucket}/{pattern}", TAR)
    assert [file.path for file in files] == [f"{bucket}/{name}" for name in names]
    assert [file.size for file in files] == [len(name) for name in names]
    assert all(file.version and file.remote for file in files)


def test_many_names_of_a_bucket_are_one_listing(bucket, monkeypatch):
    fs = fsspec.filesystem("memory")
    listings = []
    monkeypatch.setattr(type(fs), "info", lambda *_: pytest.fail("asked of one file"))
    ls = type(fs).ls
    monkeypatch.setattr(type(fs), "ls", lambda self, path, **kw: listings.append(path) or ls(self, path, **kw))
    files = find_files(f"{bucket}/a/{{00..09}}.tar", TAR, allow_missing=True)
    assert len(listings) == 1
    assert [file.size < 0 for file in files] == [False] * 3 + [True] * 7


def test_hidden_files_are_not_meant(folder):
    assert not [file for file in find_files(str(folder), TAR) if "/.hidden/" in file.path]


def test_a_name_that_looks_like_a_pattern_is_found(folder):
    assert [file.name for file in find_files(f"{folder}/b/[1]{{2}}.tar", TAR)] == ["[1]{2}.tar"]


def test_a_file_that_changes_changes_its_version(folder, bucket):
    for path, write in (
        (f"{folder}/a/00.tar", lambda data: (folder / "a/00.tar").write_bytes(data)),
        (f"{bucket}/a/00.tar", lambda data: fsspec.filesystem("memory").pipe("/bucket/a/00.tar", data)),
    ):
        (before,) = find_files(path, TAR)
        write(b"new text")
        (after,) = find_files(path, TAR)
        assert after.size == before.size == 8 and after.version != before.version


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_missing_files(where, request):
    root = request.getfixturevalue(where)
    with pytest.raises(UserError, match=r"^2 of the 4 files of .* are not there: .*03\.tar, .*04\.tar\.$"):
        find_files(f"{root}/a/{{01..04}}.tar", TAR)
    files = find_files(f"{root}/a/{{01..04}}.tar", TAR, allow_missing=True)
    assert [file.size for file in files] == [8, 8, -1, -1]
    with pytest.raises(UserError, match=r"03\.tar, .*04\.tar, .*05\.tar, \.\.\.\.$"):
        find_files(f"{root}/a/{{01..09}}.tar", TAR)


@pytest.mark.parametrize(
    "path, message",
    [
        ("", "the path of the .tar files is empty"),
        ("a/0.tar", "did you mean '"),
        ("A/00.tar", "no 'A' in the folder"),
        ("a/*.tgz", "no file matches"),
        ("{c,d}/00.tar", "no file matches"),
        ("none", "no *.tar file in the folder"),
        ("{09..01}.tar", "the range {09..01} runs backwards"),
        ("{0..2000000}.tar", "more than 1000000 files"),
        ("{0..2000}{0..2000}.tar", "more than 1000000 files"),
        ("a/00.tar/x", "00.tar' is a file"),
    ],
)
def test_mistakes_are_named(folder, path, message):
    (folder / "none").mkdir()
    with pytest.raises(UserError, match=re.escape(message)) as error:
        find_files(path and f"{folder}/{path}", TAR)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["memory://nothing/x.tar", "memory://nothing/*.tar", "memory://nothing/{0..9}.tar"])
def test_nothing_in_the_bucket(path):
    with pytest.raises(UserError, match="there is no file at"):
        find_files(path, TAR)


@pytest.mark.parametrize("url, message", [("gopher://x/y.tar", "cannot be read"), ("gs://x/y.tar", "vlm_jax[remote]")])
def test_file_systems_that_are_not_there(url, message, monkeypatch):
    def missing(_):
        raise ImportError("Please install gcsfs to access Google Storage")

    if url.startswith("gs"):
        monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=re.escape(message)):
        find_files(url, TAR, Storage(tries=1))


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("x", ["x"]),
        ("{1..3}", ["1", "2", "3"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{00000..00002}", ["00000", "00001", "00002"]),
        ("{0..1}{a,b}", ["0a", "0b", "1a", "1b"]),
        ("x{a,{b,c}}", ["xa", "xb", "xc"]),
        ("x{,y}", ["x", "xy"]),
        ("{x}", ["{x}"]),
        ("a{b", ["a{b"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names
