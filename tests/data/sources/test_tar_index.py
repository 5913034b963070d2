"""Members of a tar as samples: grouped by key, whatever their order."""

from __future__ import annotations

import itertools

import pytest

from tests.data.sources.tars import write_tar
from vlm_jax.data.sources.tar_index import NAMED, key_of, make_tar_index
from vlm_jax.data.storage import Storage, local_file


def index_of(tmp_path, names):
    path = write_tar(
        tmp_path / "x.tar", [(name, f"{name} {k}".encode(errors="surrogateescape")) for k, name in enumerate(names)]
    )
    return path.read_bytes(), make_tar_index(local_file(path), Storage())


def samples(data: bytes, index) -> list[tuple[str, dict[str, bytes]]]:
    extensions = [name for name, _ in index.meta["extensions"]]
    arrays = index.arrays
    found = []
    for k, (first, last) in enumerate(itertools.pairwise(arrays["first"].tolist())):
        content = {}
        for m in range(first, last):
            at, size = int(arrays["offset"][m]), int(arrays["size"][m])
            content[extensions[arrays["extension"][m]]] = data[at : at + size]
        found.append((key_of(index, k), content))
    return found


def test_keys_and_extensions(tmp_path):
    names = ["a.jpg", "a.txt", "dir.x/b.JPG", "dir.x/b.seg.png", "./c.txt", "other/a.jpg"]
    data, index = index_of(tmp_path, names)
    assert samples(data, index) == [
        ("a", {"jpg": b"a.jpg 0", "txt": b"a.txt 1"}),
        ("dir.x/b", {"jpg": b"dir.x/b.JPG 2", "seg.png": b"dir.x/b.seg.png 3"}),
        ("c", {"txt": b"./c.txt 4"}),
        ("other/a", {"jpg": b"other/a.jpg 5"}),
    ]
    assert index.meta == {"extensions": [("jpg", 3), ("txt", 2), ("seg.png", 1)], "problems": [], "problem_count": 0}


def test_members_of_a_sample_need_not_follow_one_another(tmp_path):
    names = [f"{key}.{extension}" for extension in ("txt", "jpg") for key in "abc"]
    data, index = index_of(tmp_path, names)
    assert [key for key, _ in samples(data, index)] == ["a", "b", "c"]
    for key, content in samples(data, index):
        assert {name: value.split()[0].decode() for name, value in content.items()} == {
            "jpg": f"{key}.jpg",
            "txt": f"{key}.txt",
        }


def test_names_without_key_or_extension_are_left_out(tmp_path):
    data, index = index_of(tmp_path, ["README", "._a.jpg", "dir/.hidden", "a.jpg"])
    assert samples(data, index) == [("a", {"jpg": b"a.jpg 3"})]


@pytest.mark.parametrize("apart", [False, True])
def test_a_second_member_of_the_same_name_is_told_and_left_out(tmp_path, apart):
    names = ["a.jpg", *(["b.jpg"] if apart else []), "a.jpg", "a.txt", "a.jpg"]
    data, index = index_of(tmp_path, names)
    assert dict(samples(data, index))["a"]["jpg"] == b"a.jpg 0"
    why = "a second .jpg under this key, which is left out"
    assert index.meta["problems"] == [("a", why)] * 2 and index.meta["problem_count"] == 2


def test_problems_are_counted_and_the_first_named(tmp_path):
    _, index = index_of(tmp_path, [f"{k:03}.jpg" for k in range(50)] * 2)
    assert index.meta["problem_count"] == 50 and len(index.meta["problems"]) == NAMED


def test_what_is_whole_of_a_damaged_tar(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"{k}.jpg", b"x" * 600) for k in range(10)])
    path.write_bytes(path.read_bytes()[: 5 * 1536 + 700])
    index = make_tar_index(local_file(path), Storage())
    assert len(index.arrays["key_ends"]) == 5
    ((key, why),) = index.meta["problems"]
    assert key == "" and "5.jpg needs 600 bytes and 188 are there" in why


def test_an_empty_archive(tmp_path):
    _, index = index_of(tmp_path, [])
    assert index.meta["problem_count"] == 0 and index.arrays["first"].tolist() == [0]


def test_names_that_are_no_utf_8(tmp_path):
    data, index = index_of(tmp_path, ["gr\udcfc\udcdfe.jpg"])
    assert samples(data, index)[0][0] == r"gr\xfc\xdfe"
