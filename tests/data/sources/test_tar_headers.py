"""Members of archives of every kind, against `tarfile`; what is damaged is told with its place."""

from __future__ import annotations

import gzip
import io
import tarfile

import hypothesis
import hypothesis.strategies as st
import pytest

from vlm_jax.data.sources.tar_headers import DamagedTar, members, open_tar
from vlm_jax.data.storage import File, Storage, local_file

LONG = "deep/" * 30 + "x" * 120 + ".jpg"
NAMES = [
    "a.jpg",
    "a.txt",
    "folder/b.jpg",
    "d" * 90 + "/" + "e" * 90 + ".jpg",
    LONG,
    "grüße/日本.jpg",
    "s p.jpg",
    "n" * 100,
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def archive(names, kind: int = tarfile.PAX_FORMAT, **more) -> bytes:
    """A tar of files that hold their own name; a `TarInfo` instead of a name comes as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind, encoding="utf-8", **more) as tar:
        for name in names:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = info.name.encode() if info.isreg() else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def walk(data: bytes) -> list[tuple[bytes, int, int]]:
    return list(members(lambda at, size: data[at : at + size], len(data)))


def check(data: bytes) -> None:
    """The same members as `tarfile` finds."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as tar:
        expected = [(info.name.encode(), info.offset_data, info.size) for info in tar if info.isreg()]
    assert walk(data) == expected and expected
    assert all(data[at : at + size] == name for name, at, size in walk(data))


@pytest.mark.parametrize("kind", FORMATS)
def test_names(kind):
    names = [name for name in NAMES if kind != "ustar" or name != LONG]
    check(archive(names, FORMATS[kind]))


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_file_is_passed_over(kind):
    others = []
    for name, form in (("f", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("p", tarfile.FIFOTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = form, "a.jpg" if kind == "ustar" else "t" * 150
        others.append(info)
    data = archive(["a.jpg", *others, "b.jpg"], FORMATS[kind])
    assert [name for name, _, _ in walk(data)] == [b"a.jpg", b"b.jpg"]
    check(data)


def test_defaults_for_all_members():
    check(archive(["a.jpg", "b.jpg"], pax_headers={"comment": "made by hand"}))


@pytest.mark.parametrize("name", ["../../etc/passwd.jpg", "/etc/passwd.jpg"])
def test_names_that_lead_outside_are_only_names(name):
    assert [found for found, _, _ in walk(archive([name]))] == [name.encode()]


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_sizes_above_8_gib(kind):
    """Only headers are read: what lies between them need not be there."""
    big = 2**33 + 5
    info = tarfile.TarInfo("big.jpg")
    info.size = big
    header = info.tobuf(FORMATS[kind])
    after = archive(["b.jpg"])
    start = len(header) + -(-big // 512) * 512

    def read(at, size):
        return header[at : at + size] if at < start else after[at - start : at - start + size]

    (name, at, size), (second, at_second, _) = members(read, start + len(after))
    assert (name, at, size) == (b"big.jpg", len(header), big)
    assert second == b"b.jpg" and at_second > start


def cut(at: int) -> bytes:
    return archive(["a.jpg", "b.jpg", LONG])[:at]


@pytest.mark.parametrize(
    "data, whole, message",
    [
        (b"", 0, "it is empty"),
        (cut(300), 0, "in the middle of a header"),
        (cut(512 + 3), 0, "member a.jpg needs 5 bytes and 3 are there"),
        (cut(512 + 5), 1, "without an end mark"),
        (cut(1024), 1, "without an end mark"),
        (cut(2048), 2, "without an end mark"),
        (cut(2048 + 600), 2, "in the middle of a header"),
        (b"<html>not found</html>" * 100, 0, "it is no tar file: it begins with b'<html>not found<'"),
        (gzip.compress(archive(["a.jpg"] * 900), 0), 0, "compressed by gzip, and cannot be read at random"),
        (archive(["a.jpg"]) + archive(["b.jpg"]), 1, "archives joined together"),
    ],
)
def test_damage(data, whole, message):
    found = []
    with pytest.raises(DamagedTar) as error:
        for member in members(lambda at, size: data[at : at + size], len(data)):
            found.append(member)
    assert message in str(error.value) and len(found) == whole


def test_a_flipped_bit_in_any_header_is_noticed():
    data = archive(["a.jpg", "b.jpg"])
    for at in range(0, 512, 7):
        broken = bytearray(data)
        broken[1024 + at] ^= 4
        with pytest.raises(DamagedTar, match=r"byte 1024"):
            walk(bytes(broken))


def test_broken_pax_headers():
    data = archive([LONG])
    assert data.count(b" path=") == 1
    at = data.index(b" path=")
    for broken in (
        data[: at - 1] + b"x" + data[at:],
        data[: at - 1] + b"9" + data[at:],
        data.replace(b" path=", b" path."),
    ):
        with pytest.raises(DamagedTar, match="PAX header"):
            walk(broken)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    kind=st.sampled_from(list(FORMATS.values())),
    changes=st.lists(st.tuples(st.integers(0, 9000), st.binary(max_size=600)), max_size=3),
    length=st.integers(0, 20_000),
)
def test_any_bytes_end_as_members_or_as_damage(kind, changes, length):
    data = bytearray(archive(["a.jpg", "b" * 90 + ".jpg" if kind == tarfile.USTAR_FORMAT else LONG, "c.jpg"], kind))
    for at, written in changes:
        data[at : at + len(written)] = written
    data = bytes(data[:length])
    ends = [0]
    try:
        for _, at, size in members(lambda at, size: data[at : at + size], len(data)):
            assert ends[-1] < at and at + size <= len(data)
            ends.append(at + size)
    except DamagedTar as damage:
        assert len(str(damage).splitlines()) == 1


def test_numbers_without_end():
    """Sizes and lengths of PAX headers are text, which no checksum covers."""
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": "9" * 6000}
    with pytest.raises(DamagedTar, match="gives the size as"):
        walk(archive([info]))
    info.pax_headers = {"comment": "x" * 6000}
    with pytest.raises(DamagedTar, match="PAX header at byte 512 is broken"):
        walk(archive([info]).replace(b" comment=", b"999999999"))
    with pytest.raises(DamagedTar, match="PAX header at byte 512 is broken"):
        walk(archive([info]).replace(b" comment=" + b"x" * 5000, b"9" * 5009))


def test_sparse_members_are_refused():
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1"}
    with pytest.raises(DamagedTar, match=r"a\.jpg .* not read"):
        walk(archive([info]))


def test_files_here_and_in_buckets(tmp_path, monkeypatch):
    import fsspec

    data = archive([f"{k:05}.jpg" for k in range(500)])
    (tmp_path / "x.tar").write_bytes(data)
    fsspec.filesystem("memory").pipe("/x.tar", data)
    for file in (local_file(tmp_path / "x.tar"), File("memory://x.tar", len(data))):
        read, close = open_tar(file, Storage(cache_dir=str(tmp_path / "cache")))
        assert list(members(read, file.size)) == walk(data)
        close()
    assert not (tmp_path / "cache").exists()  # the cache is for what training reads
