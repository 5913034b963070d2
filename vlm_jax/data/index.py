"""Indexes of files: arrays made once for a version of a file, kept on disk, and mapped rather than read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vlm_jax.data.placing import placed
from vlm_jax.data.progress import progress
from vlm_jax.data.storage import File, NoRoom, Storage, content_hash, filesystem, is_remote, remote_file
from vlm_jax.data.subprocesses import subprocesses
from vlm_jax.errors import UserError
from vlm_jax.redact import hidden

MAGIC = b"vlm_jax index 1\n"
ALIGN = 64
BESIDE = "beside"
REMOTE_THREADS = 16  # they wait for the network
MANY = 16  # files, from which on starting processes pays


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of a file.

    Attributes:
      meta: small things, as JSON.
      arrays: the rest, by name; mapped from disk, so that they cost no memory until they are looked at.
    """

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]


def indexes(
    files: Sequence[File],
    kind: str,
    make: Callable[[File], Index],
    storage: Storage,
    folder: str | None = None,
    holds: Callable[[File, Index], bool] = lambda file, index: True,
    processes: bool = False,
) -> list[Index]:
    """The index of each file, made by `make` where there is none of this version of the file.

    Several are made at a time, and each is written as soon as it is made: after an interruption the rest is to do.

    Args:
      kind: says what the index holds and in which form: an index of another kind is none.
      folder: where they are kept: None for the cache folder of `storage`, "beside" for the folder of each file, else a
        folder or a URL.
      holds: whether an index is still true, where size and version of the file do not tell.
      processes: make those of many files of this machine in processes, not threads: for a `make` that computes more
        than it waits, and that pickles.

    Raises: UserError where `folder` cannot be written.
    """
    found: list[Index | None] = [_read(_where(file, kind, storage, folder), file, kind, storage) for file in files]
    missing = [k for k, index in enumerate(found) if index is None or not holds(files[k], index)]

    def add(k: int) -> None:
        try:
            index = call(files[k])
        except RuntimeError as error:
            raise UserError(f"{files[k].path} was not indexed: {error}; start again, what is done is kept.") from error
        meta = {**index.meta, "kind": kind, "size": files[k].size, "version": files[k].version}
        found[k] = _keep(_where(files[k], kind, storage, folder), Index(meta, index.arrays), folder is not None)

    if missing:
        remote = any(files[k].remote for k in missing)
        workers = REMOTE_THREADS if remote else os.cpu_count() or 1
        apart = processes and not remote and len(missing) >= MANY
        made = subprocesses(min(workers, len(missing)), make) if apart else contextlib.nullcontext(make)
        with progress(f"indexing {kind}", len(missing)) as advance, ThreadPoolExecutor(workers) as pool, made as call:
            try:
                for _ in pool.map(add, missing):
                    advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return found


def to_bytes(index: Index) -> bytes:
    """The index as a file: magic, length of the header, header as JSON, arrays."""
    described, blocks, at = [], [], 0
    for name, array in index.arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        described.append([name, array.dtype.str, list(array.shape), at])
        blocks += [data, bytes(-len(data) % ALIGN)]
        at += len(data) + -len(data) % ALIGN
    header = json.dumps({"meta": index.meta, "arrays": described, "bytes": at}).encode()
    header += b" " * (-(len(MAGIC) + 8 + len(header)) % ALIGN)
    return b"".join([MAGIC, len(header).to_bytes(8, "little"), header, *blocks])


def from_file(path: str | os.PathLike) -> Index | None:
    """The index in a file, None where the file is none, or not a whole one."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
        start = file.tell()
        if os.fstat(file.fileno()).st_size != start + header["bytes"]:
            return None
    arrays = {}
    mapped = np.memmap(path, np.uint8, "r", offset=start) if header["bytes"] else np.empty(0, np.uint8)
    for name, dtype, shape, at in header["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        data = mapped[at : at + count * np.dtype(dtype).itemsize]
        arrays[name] = data.view(np.ndarray).view(dtype).reshape(shape)
    return Index(header["meta"], arrays)


def _where(file: File, kind: str, storage: Storage, folder: str | None) -> str:
    if folder == BESIDE:
        return f"{file.path}.{kind}.index"
    folder = str(storage.cache_folder / "indexes") if folder is None else folder.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", file.name)[:100]  # those of URLs may be long, and hold anything
    return f"{folder}/{name}.{content_hash(file.path)}.{kind}.index"


def _read(path: str, file: File, kind: str, storage: Storage) -> Index | None:
    try:
        if is_remote(path):
            fs, inside = filesystem(path)
            info = storage.attempt(path, functools.partial(fs.info, inside), storage.timeout_s)
            path = str(storage.local(remote_file(path, info)))
        index = from_file(path)
    except FileNotFoundError:
        return None
    except (OSError, NoRoom) as error:
        logging.warning("the index %s cannot be read and is made again: %s", hidden(path), hidden(str(error)))
        return None
    if index is None:
        return None
    same = all(index.meta.get(k) == v for k, v in (("kind", kind), ("size", file.size), ("version", file.version)))
    return index if same else None


def _keep(path: str, index: Index, asked_for: bool) -> Index:
    """Writes an index, and returns it as read; as it is in memory where the cache cannot be written."""
    data = to_bytes(index)
    try:
        if is_remote(path):
            fs, inside = filesystem(path)
            fs.pipe_file(inside, data)
            return index
        with placed(path) as file:
            file.write(data)
        return from_file(path) or index
    except Exception as error:  # clients of buckets raise all kinds
        if asked_for:
            raise UserError(f"the index {path} cannot be written ({error}): choose another folder for it.") from error
        logging.warning(
            "the index %s cannot be written and is made again next time: %s", hidden(path), hidden(str(error))
        )
        return index
