"""Which members of a tar belong together, as arrays that stay on disk."""

from __future__ import annotations

from array import array

import numpy as np

from vlm_jax.data.index import Index
from vlm_jax.data.sources.tar_headers import DamagedTar, members, open_tar, shown
from vlm_jax.data.storage import File, Storage

KIND = "tar1"  # raise the number whenever the same tar gives another index
NAMED = 20  # problems of a tar that are kept; all are counted


def make_tar_index(file: File, storage: Storage) -> Index:
    """Samples of a tar: its members grouped by key, in the order in which the keys first occur.

    The key is the path up to the first dot of its last component, the rest is the extension, in lower case; names
    without one of the two are left out. Members of a sample need not follow one another.

    Returns:
      `meta` with "extensions" (each with the number of samples that have it), "problems" (key and reason, at most 20)
      and "problem_count"; arrays `first` int64 [samples + 1], where the members of each sample begin; `offset` int64,
      `size` int64 and `extension` uint32 [members]; `keys` uint8 and, where each ends, `key_ends` int64 [samples].
    """
    keys: dict[bytes, int] = {}
    extensions: dict[bytes, int] = {}
    sample, extension, offset, size = array("q"), array("L"), array("q"), array("q")
    problems: list[tuple[str, str]] = []
    read, close = open_tar(file, storage)
    try:
        for name, at, length in members(read, file.size):
            base = name.rfind(b"/") + 1
            dot = name.find(b".", base)
            if dot <= base:
                continue
            sample.append(keys.setdefault(name[:dot].removeprefix(b"./"), len(keys)))
            extension.append(extensions.setdefault(name[dot + 1 :].lower(), len(extensions)))
            offset.append(at)
            size.append(length)
    except DamagedTar as damage:
        problems.append(("", str(damage)))
    finally:
        close()

    owner, kind = _array(sample), _array(extension)
    order = np.lexsort((_array(offset), kind, owner))
    again = np.zeros(len(order), bool)
    again[1:] = (owner[order][1:] == owner[order][:-1]) & (kind[order][1:] == kind[order][:-1])
    names, kinds = list(keys), list(extensions)
    damaged = len(problems)
    for at in order[again][:NAMED].tolist():
        why = f"a second .{shown(kinds[kind[at]])} under this key, which is left out"
        problems.append((shown(names[owner[at]]), why))
    order = order[~again]

    counts = np.bincount(kind[order], minlength=len(kinds)).tolist()
    meta = {
        "extensions": [(shown(kind), count) for kind, count in zip(kinds, counts)],
        "problems": problems[:NAMED],
        "problem_count": damaged + int(again.sum()),
    }
    arrays = {
        "first": np.searchsorted(owner[order], np.arange(len(names) + 1)).astype("<i8"),
        "offset": _array(offset)[order],
        "size": _array(size)[order],
        "extension": kind[order].astype("<u4"),
        "keys": np.frombuffer(b"".join(names), np.uint8),
        "key_ends": np.cumsum([len(name) for name in names], dtype="<i8"),
    }
    return Index(meta, arrays)


def key_of(index: Index, sample: int) -> str:
    """The key of a sample, as a message shows it."""
    ends = index.arrays["key_ends"]
    start = int(ends[sample - 1]) if sample else 0
    return shown(index.arrays["keys"][start : int(ends[sample])].tobytes())


def _array(values: array) -> np.ndarray:
    return np.array(values, np.int64)
