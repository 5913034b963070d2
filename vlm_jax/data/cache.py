"""A folder of bytes by key that stays below a size, and that any number of processes may share."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from vlm_jax.data.placing import placed

# The folder is looked through again whenever this part of its limit was written since.
RESCAN = 0.05
LOW_WATER = 0.9  # how full it is left when something had to go


class Cache:
    """Files named by the hash of their key; each is written beside, then renamed, so that none is ever half there."""

    def __init__(self, folder: Path, limit: int):
        """Args: limit: the most bytes it holds; 0 keeps nothing."""
        self.folder, self.limit = Path(folder), limit
        self._lock = threading.Lock()
        self._written: float | None = None  # since the folder was last looked through; None: never

    def get(self, key: str, size: int) -> bytes | None:
        """What is kept under a key, if it has that size."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # used now
        except OSError:  # not there, or another process has just removed it
            return None
        return data if len(data) == size else None

    def path(self, key: str, size: int) -> Path | None:
        """The file kept under a key, if it has that size."""
        path = self._path(key)
        try:
            os.utime(path)
            return path if path.stat().st_size == size else None
        except OSError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Keeps `data`, if there is room for it; a disk that is full or read-only is no reason to stop."""
        if len(data) <= self.limit:
            try:
                self.put_pieces(key, [data])
            except OSError:
                return

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> Path:
        """Keeps what the pieces say together, and returns the file.

        Raises: OSError where it cannot be written.
        """
        path = self._path(key)
        with placed(path) as file:
            size = sum(file.write(piece) for piece in pieces)
        self._make_room(size)
        return path

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        return self.folder / digest[:2] / digest[2:40]

    def _make_room(self, written: int) -> None:
        with self._lock:
            if self._written is not None:
                self._written += written
                if self._written < RESCAN * self.limit:
                    return
            self._written = 0
            kept = [(stat.st_mtime, stat.st_size, path) for path, stat in self._files()]
            total = sum(size for _, size, _ in kept)
            if total <= self.limit:
                return
            for _, size, path in sorted(kept):
                if total <= LOW_WATER * self.limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _files(self):
        for path in self.folder.glob("*/*"):
            try:
                yield path, path.stat()
            except OSError:  # another process has just removed it
                continue
