"""The cache: what was put comes back, it stays below its limit, and no trouble with the disk gets out of it."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from vlm_jax.data.cache import LOW_WATER, Cache


def kept(cache: Cache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())


def test_what_was_put_comes_back(tmp_path):
    cache = Cache(tmp_path, 10**6)
    assert cache.get("a", 3) is None and cache.path("a", 3) is None
    cache.put("a", b"abc")
    assert cache.get("a", 3) == b"abc"
    assert cache.path("a", 3).read_bytes() == b"abc"
    assert cache.get("b", 3) is None
    assert Cache(tmp_path, 10**6).get("a", 3) == b"abc"


def test_another_size_is_not_what_was_put(tmp_path):
    cache = Cache(tmp_path, 10**6)
    cache.put("a", b"abc")
    cache.path("a", 3).write_bytes(b"ab")  # a disk that lost a part
    assert cache.get("a", 3) is None and cache.path("a", 3) is None


def test_pieces_are_one_file(tmp_path):
    cache = Cache(tmp_path, 10)
    path = cache.put_pieces("a", iter([b"ab", b"", b"cd"]))
    assert path.read_bytes() == b"abcd" and path == cache.path("a", 4)


def test_it_stays_below_its_limit_and_what_was_used_last_stays(tmp_path):
    cache = Cache(tmp_path, 1000)
    for k in range(10):
        cache.put(str(k), bytes(100))
        os.utime(cache.path(str(k), 100), (k, k))
    cache.get("0", 100)  # used now: 1 is what was not used for longest
    cache.put("10", bytes(100))
    assert kept(cache) <= LOW_WATER * 1000
    assert cache.get("1", 100) is None
    assert cache.get("0", 100) is not None and cache.get("10", 100) is not None
    for k in range(200):
        cache.put(f"more {k}", bytes(90))
        assert kept(cache) <= 1000 * 1.15  # it looks through the folder from time to time


@pytest.mark.parametrize("limit", [0, 2])
def test_what_is_larger_than_the_limit_is_not_kept(tmp_path, limit):
    cache = Cache(tmp_path, limit)
    cache.put("a", b"abc")
    assert cache.get("a", 3) is None and kept(cache) == 0


def test_a_full_disk_is_no_reason_to_stop(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = Cache(tmp_path, 1000)
    monkeypatch.setattr(os, "replace", full)
    cache.put("a", b"abc")
    assert cache.get("a", 3) is None
    assert kept(cache) == 0  # nothing half-written is left to fill it further
    with pytest.raises(OSError, match="No space"):
        cache.put_pieces("a", [b"abc"])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", 1000)
    cache.put("a", b"abc")
    assert cache.get("a", 3) is None


def test_pieces_that_break_off_leave_nothing(tmp_path):
    def pieces():
        yield b"ab"
        raise OSError("connection reset")

    cache = Cache(tmp_path, 1000)
    with pytest.raises(OSError, match="reset"):
        cache.put_pieces("a", pieces())
    assert kept(cache) == 0 and cache.path("a", 2) is None


def test_two_caches_in_one_folder(tmp_path):
    """As two processes use it: each removes what the other may be reading, and neither sees half a file."""
    caches = [Cache(tmp_path, 2000), Cache(tmp_path, 2000)]
    wrong = []

    def use(cache: Cache, start: int):
        for k in range(start, start + 300):
            name = str(k % 37)
            data = name.encode() * 50
            found = cache.get(name, len(data))
            if found is None:
                cache.put(name, data)
            elif found != data:
                wrong.append(name)

    threads = [threading.Thread(target=use, args=(cache, 11 * k)) for k, cache in enumerate(caches * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and kept(caches[0]) <= 2500
