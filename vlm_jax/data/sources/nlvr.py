"""`NLVR`: sentences about drawn scenes that are true or false (Suhr et al. 2017), in folds for cross-validation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.parquet_table import ParquetTable
from vlm_jax.data.storage import Storage, content_hash, without_query
from vlm_jax.errors import UserError, closest

SPLITS = ("all", "train", "test")
RENDERINGS = 6  # the three boxes of a scene in every order
ANSWERS = {True: "true", False: "false"}
_COLUMNS = ("images", "sentence", "label", "identifier")
_CACHE_BYTES = 500 * 10**6


@dataclasses.dataclass(frozen=True)
class NLVR:
    """Conversations of one turn: an image, a sentence, and "true" or "false".

    Parquet rows have `images` (a list of six encoded images, or structs with their `bytes`), `sentence`, `label` (bool)
    and `identifier` "SENTENCE-SCENE": every sentence was written about four scenes, and some scenes have several
    sentences. Whatever shares a sentence's identifier or an image is one cluster, and lies whole in one fold: no scene,
    in any rendering, and none of its sentences is both trained and tested on.

    Attributes:
      path: a Parquet file, a folder of them, a pattern.
      split: "train" is all folds but one, "test" is that one, "all" every row.
      fold: which is tested.
      folds: how many; clusters go to them in such a way that they have about as many rows.
      renderings: of each scene the first so many are records of their own.
      storage: how files are read.
    """

    path: str
    split: str = "all"
    fold: int = 0
    folds: int = 5
    renderings: int = 1
    storage: Storage = Storage()

    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for values that do not fit together, a missing column, or a fold without rows."""
        if self.split not in SPLITS:
            raise UserError(f"NLVR.split={self.split!r}: {closest(self.split, SPLITS)}")
        if not 0 <= self.fold < self.folds or self.folds < 2 or not 1 <= self.renderings <= RENDERINGS:
            raise UserError(
                f"NLVR(fold={self.fold}, folds={self.folds}, renderings={self.renderings}): "
                f"wanted are folds >= 2, 0 <= fold < folds and 1 <= renderings <= {RENDERINGS}."
            )
        for file, schema in zip(self._table.files, self._table.schemas):
            for column in _COLUMNS:
                if column not in schema.names:
                    raise UserError(f"{file.path} has no column {column!r}: {closest(column, schema.names)}")
        if not len(self):
            raise UserError(f"NLVR: {self.path} has no rows in split={self.split!r}, fold={self.fold} of {self.folds}.")

    @property
    def name(self) -> str:
        return f"nlvr/{Path(without_query(self.path)).stem}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names and sizes and of what is read of them; not of where they lie."""
        files = [(file.name, file.size) for file in self._table.files]
        return content_hash(files, self.split, self.fold, self.folds, self.renderings)

    def __len__(self) -> int:
        return self.renderings * len(self._rows)

    def __getitem__(self, index: int) -> dict:
        """`messages` [user, assistant], `images` of one encoded image, `type` "true or false", `cluster` int, `key`.

        Record `index` is rendering `index % renderings` of row `index // renderings`.

        Raises: UnreadableRecord for a row without sentence, label or image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, asked for number {index}.")
        number, rendering = self._rows[index // self.renderings], index % self.renderings
        row = self._table.row(number, _COLUMNS)
        images = [_bytes(image) for image in row["images"] or ()]
        if not row["sentence"] or row["label"] is None or len(images) <= rendering or not images[rendering]:
            raise UnreadableRecord(self.name, self._table.where(number), "it lacks its sentence, label or image")
        return {
            "messages": [
                {"role": "user", "content": f"<image>\n{row['sentence']}"},
                {"role": "assistant", "content": ANSWERS[row["label"]]},
            ],
            "images": [images[rendering]],
            "type": "true or false",
            "cluster": self._clusters[number],
            "key": f"{self._table.where(number)}:{row['identifier']}:{rendering}",
        }

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """The sentences and answers of the split, at most `limit` texts, to train a tokenizer on."""
        return itertools.islice(self._texts(), limit)

    def __getstate__(self) -> dict:
        """The options alone: a process that gets a copy reads the files itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _texts(self) -> Iterator[str]:
        chosen = set(self._rows)
        for row, (sentence, label) in enumerate(self._table.scan(["sentence", "label"])):
            if row in chosen and sentence and label is not None:
                yield from (sentence, ANSWERS[label])

    @functools.cached_property
    def _table(self) -> ParquetTable:
        return ParquetTable(self.path, _CACHE_BYTES, self.storage)

    @functools.cached_property
    def _rows(self) -> list[int]:
        """The rows of the split."""
        if self.split == "all":
            return list(range(len(self._table)))
        sizes, fold_of = [0] * self.folds, {}
        for cluster, size in sorted(Counter(self._clusters).items(), key=lambda c: (-c[1], c[0])):
            fold_of[cluster] = sizes.index(min(sizes))
            sizes[fold_of[cluster]] += size
        tested = self.split == "test"
        return [row for row, cluster in enumerate(self._clusters) if (fold_of[cluster] == self.fold) == tested]

    @functools.cached_property
    def _clusters(self) -> list[int]:
        """Of each row the first row that it is bound to, by way of others too."""
        parent, first = list(range(len(self._table))), {}

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = row = parent[parent[row]]
            return row

        for row, (identifier, images) in enumerate(self._table.scan(["identifier", "images"])):
            sentence = str(identifier).rpartition("-")[0]
            for shared in (sentence, *(hashlib.sha256(_bytes(image)).digest() for image in images or ())):
                low, high = sorted((root(first.setdefault(shared, row)), root(row)))
                parent[high] = low
        return [root(row) for row in range(len(parent))]


def _bytes(image: bytes | dict | None) -> bytes:
    return (image.get("bytes") if isinstance(image, dict) else image) or b""
