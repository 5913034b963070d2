"""Images by name: in a folder, behind a URL, or as members of tars."""

from __future__ import annotations

import functools
import hashlib
from array import array

import numpy as np

from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources.tar_headers import DamagedTar, members, open_tar
from vlm_jax.data.storage import File, Storage
from vlm_jax.errors import UserError

KIND = "tarnames1"  # raise the number whenever the same tar gives another index


class ImageStore:
    """`store(name) -> bytes`.

    Names of tars are looked up by 64 bits of a hash, in arrays that stay on disk. Tars are tried in turn, beginning
    with the one that had the image asked for before.
    """

    def __init__(self, path: str, storage: Storage, index: str | None = None):
        """Args: path: a folder or URL, or what means tars and ends in ".tar".

        Raises: UserError for no tar, or a damaged one.
        """
        self._path, self._storage = path.rstrip("/"), storage
        self._files: list[File] = find_files(path, (".tar",), storage) if path.endswith(".tar") else []
        make = functools.partial(make_name_index, storage=storage)
        self._indexes = indexes(self._files, KIND, make, storage, index, processes=True)
        self._last = 0

    def __call__(self, name: str) -> bytes:
        """Raises: FileNotFoundError where there is none of that name; UserError where it cannot be read."""
        if not self._files:
            return self._storage.fetch(f"{self._path}/{name}")
        key = _hash(name.encode(errors="surrogateescape"))
        last = self._last
        for k in (last, *range(last), *range(last + 1, len(self._files))):
            arrays = self._indexes[k].arrays
            at = int(np.searchsorted(arrays["hash"], key))
            if at < len(arrays["hash"]) and arrays["hash"][at] == key:
                self._last = k
                start = int(arrays["offset"][at])
                return self._storage.read(self._files[k], start, start + int(arrays["size"][at]))
        raise FileNotFoundError(f"no member {name} in {self._path}")


def make_name_index(file: File, storage: Storage) -> Index:
    """`hash` uint64 [members], sorted, with `offset` and `size` int64.

    Raises: UserError for a damaged tar.
    """
    hashes, offsets, sizes = array("Q"), array("q"), array("q")
    read, close = open_tar(file, storage)
    try:
        for name, at, size in members(read, file.size):
            hashes.append(_hash(name.removeprefix(b"./")))
            offsets.append(at)
            sizes.append(size)
    except DamagedTar as damage:
        raise UserError(f"{file.path}: {damage}.") from None
    finally:
        close()
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    columns = (("hash", hashes, np.uint64), ("offset", offsets, np.int64), ("size", sizes, np.int64))
    return Index({}, {name: np.array(values, dtype)[order] for name, values, dtype in columns})


def _hash(name: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
