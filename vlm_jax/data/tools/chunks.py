"""Long work on the records of a source, in chunks whose results are kept: an interruption costs one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.data.progress import progress
from vlm_jax.data.tools.files import make_folder, write_json, write_whole
from vlm_jax.errors import UserError

CHUNK = 1000  # records


class Chunks:
    """Lines of text on `count` records, a file for each thousand of them, made where they are missing.

    Attributes:
      folder: of the files, and of `source.json`, which says whose they are.
    """

    def __init__(self, folder: Path, source: Any, count: int, about: Mapping[str, Any]):
        """Makes the folder, or takes it up.

        Args:
          about: what else the lines depend on, as JSON.

        Raises: UserError where the folder holds results on other data.
        """
        self.folder, self._count = make_folder(folder), count
        now = {
            "source": source.name,
            "fingerprint": source.fingerprint,
            "length": len(source),
            "records": count,
            **about,
        }
        path = self.folder / "source.json"
        if not path.exists():
            write_json(path, now)
            return
        before = json.loads(path.read_text())
        changed = [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in now.items()]
        changed = [line for name, line in zip(now, changed) if before.get(name) != now[name]]
        if changed:
            raise UserError(f"{folder} holds results on other data ({'; '.join(changed)}): take another --output.")

    def make(self, what: str, lines: Callable[[slice], list[str]]) -> None:
        """Fills in the chunks that are missing; `lines` of records begin:end, each ending in a line break."""
        missing = [first for first in range(0, self._count, CHUNK) if not self._path(first).exists()]
        if not missing:
            return
        with progress(what, len(missing)) as advance:
            for first in missing:
                write_whole(self._path(first), "".join(lines(slice(first, min(first + CHUNK, self._count)))))
                advance()

    def __iter__(self) -> Iterator[str]:
        """All lines, in order, a chunk at a time in memory."""
        firsts = range(0, self._count, CHUNK)
        with progress("going through the results", len(firsts)) as advance:
            for first in firsts:
                yield from self._path(first).read_text(encoding="utf-8").splitlines()
                advance()

    def _path(self, first: int) -> Path:
        return self.folder / f"{first // CHUNK:06}.jsonl"
