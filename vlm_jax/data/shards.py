"""Shards of a folder, each whole or not there: written one after the other, killed and resumed at will."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.data.progress import progress
from vlm_jax.errors import UserError

MANIFEST = "dataset.json"
Unreadable = list[tuple[str, str]]


class Shards:
    """The folder of one piece of work on the records of a source: "00000.EXT", "00001.EXT", ... and `dataset.json`,
    which says whence they come and which records were unreadable.

    Whenever it was killed, the same work gives the same files, byte for byte, and makes only shards that are missing.
    """

    def __init__(self, folder: Path, source: Any, shard_records: int, form: str, **about: Any):
        """Makes the folder, or takes it up.

        Args:
          shard_records: records of a shard. form: of the shards.
          about: what else the shards depend on, as JSON.

        Raises:
          UserError: there are no such shards, or the folder holds other work, or another tool's.
          OSError: the folder cannot be written.
        """
        if shard_records < 1:
            raise UserError(f"shard_records={shard_records}: wanted is at least 1.")
        self._folder, self._length, self._size = folder, len(source), shard_records
        source = {"source": source.name, "fingerprint": source.fingerprint}
        manifest = {**source, "format": form, "shard_records": shard_records, **about}
        self._manifest = json.loads(json.dumps(manifest))  # as it is read again
        self._unreadable = self._begin()

    def write(self, suffix: str, shard: Callable[[Path, range, Unreadable], Any]) -> Unreadable:
        """Writes the shards that are missing.

        Args:
          suffix: the end of their names.
          shard: writes the records of some numbers to a path, and appends key and reason of the unreadable ones.

        Returns: the unreadable ones of all shards.

        Raises: OSError where the folder cannot be written.
        """
        count = -(-self._length // self._size)
        with progress(f"writing {self._manifest['format']}", count) as advance:
            for number in range(count):
                path = self._folder / f"{number:05}{suffix}"
                if not path.exists():
                    self._write_one(number, path, shard)
                advance()
        return [(key, why) for number in sorted(self._unreadable, key=int) for key, why in self._unreadable[number]]

    def _write_one(self, number: int, path: Path, shard: Callable[[Path, range, Unreadable], Any]) -> None:
        records = range(number * self._size, min((number + 1) * self._size, self._length))
        failed: Unreadable = []

        def write(part: Path) -> None:
            shard(part, records, failed)
            self._unreadable[str(number)] = failed
            self._save()  # before the shard has its name: what is there is never written again

        _write_whole(path, write)

    def _begin(self) -> dict[str, Unreadable]:
        """Key and reason of the records that are known to be unreadable, by shard."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / MANIFEST
        if path.exists():
            before = read_manifest(self._folder)
            unreadable = before.pop("unreadable")
            if changed := _changes(before, self._manifest):
                raise UserError(f"{self._folder} holds other work ({changed}): choose another folder.")
            return unreadable
        if any(entry != _part(path) for entry in self._folder.iterdir()):
            raise UserError(f"{self._folder} is not empty, and holds no {MANIFEST}: choose another folder.")
        self._unreadable = {}
        self._save()
        return {}

    def _save(self) -> None:
        text = json.dumps({**self._manifest, "unreadable": self._unreadable}, indent=1)
        _write_whole(self._folder / MANIFEST, lambda path: path.write_text(text))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the `dataset.json` of a folder says. Raises: UserError where `Shards` did not write it."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    kinds = {"format": str, "unreadable": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is not what `python -m vlm_jax.data` writes: it is broken, or another tool's.")
    return found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [*now, *(name for name in before if name not in now)]
    differ = [name for name in names if before.get(name) != now.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in differ)


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside, then renames, so that no half of it ever has the name."""
    part = _part(path)
    _remove(part)
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
