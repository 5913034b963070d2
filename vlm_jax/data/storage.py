"""Bytes of files, here or in buckets: retried, never waited for without end, kept in a local cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vlm_jax.data.cache import Cache
from vlm_jax.errors import Fault, UserError
from vlm_jax.redact import hidden

T = TypeVar("T")

FIRST_WAIT_S = 1.0  # before the second try; it grows fourfold with each, for a bucket that is away for a minute
LONGEST_WAIT_S = 120.0
PIECE = 32 * 2**20  # bytes of one request where whole files are fetched
# What tells one content of an object from another, in the names that buckets and web servers give it.
VERSIONS = ("generation", "ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


def is_remote(path: str) -> bool:
    """Whether a path is a URL such as "gs://bucket/file", one of this machine ("file:///...") aside."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path)) and not path.startswith("file://")


class NoRoom(Fault):
    """What a file was to be kept in cannot be written: a full disk, or one that is read-only."""


def without_query(path: str) -> str:
    """A path, or a URL without what changes when it is signed anew: only in web addresses does "?" begin a query."""
    return path.partition("?")[0] if path.startswith(("http://", "https://")) else path


@dataclasses.dataclass(frozen=True)
class File:
    """A file at the moment it was found.

    Attributes:
      path: of this machine, or a URL.
      size: in bytes; -1 for a file that should be there and is not.
      version: changes when the content does.
    """

    path: str
    size: int
    version: str = ""

    @property
    def name(self) -> str:
        return without_query(self.path).rstrip("/").rpartition("/")[2]

    @property
    def remote(self) -> bool:
        return is_remote(self.path)


@dataclasses.dataclass(frozen=True)
class Storage:
    """How files are read.

    Files of this machine are read where they are. Those of URLs go through fsspec (`gs://` needs gcsfs, `s3://` s3fs,
    `https://` aiohttp: `pip install 'vlm_jax[remote]'`), and what was read once is kept in `cache_dir`.

    Attributes:
      cache_dir: folder of the cache, which processes may share; None for `~/.cache/vlm_jax`.
      cache_gb: the most that it holds, in gigabytes (1e9 bytes); what was not used for longest goes first. 0 keeps
        nothing.
      tries: how often a read is tried, with waits of 1, 4, 16, ... seconds between; then the run stops.
      timeout_s: seconds after which a request of a URL counts as failed.
    """

    cache_dir: str | None = None
    cache_gb: float = 10.0
    tries: int = 5
    timeout_s: float = 60.0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a number out of range."""
        if self.tries < 1 or self.timeout_s <= 0 or self.cache_gb < 0:
            raise UserError(
                f"Storage(tries={self.tries}, timeout_s={self.timeout_s}, cache_gb={self.cache_gb}): "
                "wanted are tries >= 1, timeout_s > 0 and cache_gb >= 0."
            )

    @property
    def cache_folder(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(self.cache_dir or f"{base}/vlm_jax").expanduser()

    def read(self, file: File, start: int = 0, stop: int | None = None, *, keep: bool = True) -> bytes:
        """Bytes `start` to `stop` (the end, if None) of a file.

        Args:
          keep: whether the cache of remote files is asked, and given what was read.

        Raises: Fault, one line, where that fails `tries` times. It says nothing about the record that lies there.
        """
        stop = file.size if stop is None else stop
        if stop <= start:
            return b""
        if not file.remote:
            return self.attempt(file.path, lambda: _whole(_pread(file.path, start, stop), stop - start))
        key = f"{file.path}\0{file.version}\0{start}\0{stop}"
        if keep and (data := self._cache.get(key, stop - start)) is not None:
            return data
        fs, path = filesystem(file.path)
        ask = functools.partial(fs.cat_file, path, start=start, end=stop)
        data = self.attempt(file.path, lambda: _whole(ask(), stop - start), self.timeout_s)
        if keep:
            self._cache.put(key, data)
        return data

    def fetch(self, path: str) -> bytes:
        """All bytes of a file that was not looked for before.

        Raises: FileNotFoundError; Fault where it cannot be read.
        """
        if not is_remote(path):
            return self.attempt(path, lambda: Path(path).read_bytes())
        fs, inside = filesystem(path)
        info = self.attempt(path, functools.partial(fs.info, inside), self.timeout_s)
        return self.read(remote_file(path, info))

    def local(self, file: File) -> Path:
        """A path of this machine with the file's content; one of a URL is fetched as a whole, once.

        Raises: UserError where it cannot be fetched, or is larger than the cache; NoRoom where its disk is full.
        """
        if not file.remote:
            return Path(file.path)
        if file.size > self._cache.limit:
            raise UserError(
                f"{file.path} has {file.size / 1e9:.1f} GB and must be fetched whole, cache_gb={self.cache_gb}: "
                "raise that, or mount the bucket (Cloud Storage FUSE, mountpoint-s3) and give the folder."
            )
        key = f"{file.path}\0{file.version}"
        starts = range(0, file.size, PIECE)
        pieces = (self.read(file, start, min(start + PIECE, file.size), keep=False) for start in starts)
        if kept := self._cache.path(key, file.size):
            return kept
        try:
            return self._cache.put_pieces(key, pieces)
        except FileNotFoundError:  # of the URL
            raise
        except OSError as error:
            raise NoRoom(
                f"{file.path} has {file.size / 1e9:.1f} GB, must be fetched whole, and cannot be kept in "
                f"{self.cache_folder}: {error.strerror or error}; make room there, or give another cache_dir."
            ) from error

    def open(self, file: File) -> io.BufferedIOBase:
        """The file for a library that wants to read and seek."""
        return Seekable(file, self)

    def attempt(self, what: str, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """`call()`, again after any error that may pass.

        Raises:
          Fault: it failed `tries` times; a launcher may start the run again.
          FileNotFoundError: as `call` raised it: what is not there is not there at the next try either.
        """
        for number in range(self.tries):
            if number:
                wait = min(FIRST_WAIT_S * 4 ** (number - 1), LONGEST_WAIT_S)
                time.sleep(wait * random.uniform(0.75, 1.25))  # many processes must not come back all at once
            try:
                return call() if timeout_s is None else within(timeout_s, call)
            except (FileNotFoundError, UserError):
                raise
            except Exception as error:  # clients of buckets raise all kinds
                failure = error
                logging.warning("%s: try %d of %d failed: %s", hidden(what), number + 1, self.tries, _one_line(error))
        raise Fault(
            f"{what} cannot be read after {self.tries} tries ({_one_line(failure)}); mend the storage and start again, "
            "the run resumes where it was."
        ) from failure

    @functools.cached_property
    def _cache(self) -> Cache:
        return Cache(self.cache_folder / "files", int(self.cache_gb * 1e9))

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Seekable(io.BufferedIOBase):
    """A file as an object to read from, each read through a `Storage`."""

    def __init__(self, file: File, storage: Storage):
        self._file, self._storage, self._at = file, storage, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._file.size)[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._file.size if size is None or size < 0 else min(self._at + size, self._file.size)
        data = self._storage.read(self._file, self._at, stop)
        self._at += len(data)
        return data


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises: UserError where the client for it is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} cannot be read here: {_one_line(error)}; pip install 'vlm_jax[remote]'.") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be read: {_one_line(error)}.") from error


def remote_file(url: str, info: dict) -> File:
    """A `File` from what fsspec says of a URL.

    Raises: UserError for a server that does not say how long the file is.
    """
    if info.get("size") is None:
        raise UserError(f"{url}: the server does not say how many bytes it has, so it cannot be read at random.")
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    return File(url, int(info["size"]), version)


def local_file(path: str | os.PathLike) -> File:
    """Raises: FileNotFoundError."""
    stat = os.stat(path)
    return File(str(path), stat.st_size, str(stat.st_mtime_ns))


def within(seconds: float, call: Callable[[], T]) -> T:
    """`call()`, or TimeoutError; what does not come back is left to a thread that holds nothing up."""
    out: list = []

    def run():
        try:
            out.append((call(), None))
        except BaseException as error:
            out.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not out:
        raise TimeoutError(f"no answer in {seconds:g} s")
    value, error = out[0]
    if error is not None:
        raise error
    return value


def content_hash(*parts: Any) -> str:
    """16 hex digits of what the parts say."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _pread(path: str, start: int, stop: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while start < stop and (piece := os.pread(fd, stop - start, start)):  # at most 2 GiB a call
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise OSError(f"got {len(data)} bytes where {size} were asked for")
    return data


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return hidden(lines[0]) if lines else type(error).__name__
