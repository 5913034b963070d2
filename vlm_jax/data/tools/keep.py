"""Keep-lists: which records of a source were chosen, and a source of those alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.index import Index, from_file, to_bytes
from vlm_jax.data.storage import content_hash
from vlm_jax.data.tools.files import write_whole
from vlm_jax.errors import UserError

KIND = "keep1"


def write_keep(path: Path, source: Any, records: Int[np.ndarray, "n"]) -> None:
    """Writes the indices of the records of `source` that are kept, ascending, with what tells this source."""
    meta = {"kind": KIND, "source": source.name, "fingerprint": source.fingerprint, "length": len(source)}
    write_whole(path, to_bytes(Index(meta, {"records": np.asarray(records, np.int64)})))


@dataclasses.dataclass(frozen=True)
class Kept:
    """The records of a source that a keep-list names, in their order; for `Pipeline.source` or a part of a mixture.

    `bind("data.tools.keep.Kept", source=..., keep="reports/laion/keep.index")`

    Attributes:
      source: random access, the very source that was curated, with the same options.
      keep: the file that `python -m vlm_jax.data curate` wrote; it is mapped, and costs no memory.
    """

    source: Any
    keep: str

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError where the file is no keep-list, is one of another source, or keeps nothing."""
        meta = self._index.meta
        if meta["fingerprint"] != self.source.fingerprint:
            raise UserError(
                f"{self.keep} was made for {meta['source']} with {meta['length']} records, and not for "
                f"{self.source.name} as it is, with {len(self.source)}: curate it again."
            )
        if not len(self):
            raise UserError(f"{self.keep} keeps no record of {self.source.name}.")

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def problems(self) -> Sequence[tuple[str, str, str]]:
        return getattr(self.source, "problems", ())

    @property
    def problem_count(self) -> int:
        return getattr(self.source, "problem_count", 0)

    @functools.cached_property
    def fingerprint(self) -> str:
        return content_hash(self.source.fingerprint, self._records.tobytes().hex())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        """The record of the source. Raises: what that raises."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} kept records, asked for number {index}.")
        return self.source[int(self._records[index])]

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions of the kept records that can be read, at most `limit`, to train a tokenizer on."""
        return itertools.islice(self._captions(), limit)

    def _captions(self) -> Iterator[str]:
        for index in range(len(self)):
            with contextlib.suppress(UnreadableRecord):
                text = self[index].get("text") or ()
                yield from [text] if isinstance(text, str) else text

    def __getstate__(self) -> dict:
        return {"source": self.source, "keep": self.keep}

    @functools.cached_property
    def _index(self) -> Index:
        try:
            index = from_file(Path(self.keep).expanduser())
        except OSError as error:
            raise UserError(f"the keep-list {self.keep} cannot be read: {error.strerror}.") from error
        if index is None or index.meta.get("kind") != KIND:
            raise UserError(f"{self.keep} is no keep-list: wanted is the keep.index that `curate` wrote.")
        return index

    @property
    def _records(self) -> Int[np.ndarray, "n"]:
        return self._index.arrays["records"]
