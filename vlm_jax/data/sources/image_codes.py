"""`ImageCodes`: images as the tokens of an autoencoder, with their captions; `python -m vlm_jax.data tokenize` writes
them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.parquet_table import ParquetTable, hugging_face_names
from vlm_jax.data.sources.window import Window
from vlm_jax.data.storage import Storage, content_hash
from vlm_jax.errors import UserError

METADATA = b"vlm_jax.image_codes"  # of a file's schema
SHOWN = 3  # classes that a message names


@dataclasses.dataclass(frozen=True)
class Codes:
    """What image codes are, as their files say it.

    Attributes:
      grid: rows and columns, and of a residual quantiser the codes of a place.
      vocab_size: codes are at least 0 and below it.
      image_size: of the images, in pixels.
      model: the fingerprint of the model that gave them.
    """

    grid: tuple[int, ...]
    vocab_size: int
    image_size: int
    model: str

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))

    @property
    def length(self) -> int:
        """Codes of an image."""
        return int(np.prod(self.grid))


@dataclasses.dataclass(frozen=True)
class ImageCodes(Window):
    """Rows of Parquet files as records of `image_codes`, `text` and, where there are classes, `label`.

    Attributes:
      path: a file, a folder (all `*.parquet` below it), or a pattern such as "codes/{00000..00012}.parquet".
      skip: rows to leave out at the start.
      limit: rows to use after that; None uses all.
      cache_mb: memory for row groups, in megabytes (1e6 bytes).
      storage: how files are read, those of URLs too.
    """

    path: str
    skip: int = 0
    limit: int | None = None
    cache_mb: int = 2000
    storage: Storage = Storage()

    KIND: ClassVar[str] = "image_codes"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for options or files that cannot be, and for files of different models or classes."""
        self.check_options()
        _ = self.codes, self.class_names
        self.check_count()

    @functools.cached_property
    def codes(self) -> Codes:
        """Of all files. Raises UserError where they differ, or are none."""
        table, found = self._table, []
        for file, schema in zip(table.files, table.schemas):
            written = (schema.metadata or {}).get(METADATA)
            if written is None:
                raise UserError(f"{file.path} holds no image codes; `python -m vlm_jax.data tokenize` writes them.")
            found.append(Codes(**json.loads(written)))
            if found[-1] != found[0]:
                raise UserError(
                    f"{file.path} and {table.files[0].path} hold codes of different models: {found[-1]}, {found[0]}."
                )
        return found[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names and lengths, and of the model; not of where they lie."""
        files = [
            (file.name, file.size, footer.num_rows) for file, footer in zip(self._table.files, self._table.footers)
        ]
        return content_hash(json.dumps([files, dataclasses.asdict(self.codes), self.skip, self.limit]))

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order, () where there are none. Raises UserError where files differ in them."""
        files, schemas = self._table.files, self._table.schemas
        found = [hugging_face_names(schema, "label" if "label" in schema.names else None) for schema in schemas]
        for file, names in zip(files, found):
            if names != found[0]:
                raise UserError(
                    f"{file.path} and {files[0].path} have different classes: {_some(names)}, {_some(found[0])}."
                )
        return found[0]

    def count(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict:
        """`image_codes` int32 [codes.length], row by row; `text` list of str, which may be empty; `label` int where
        there are classes; `key` of the record that the image was in.

        Raises: UnreadableRecord where codes are missing or out of range; OSError where the file cannot be read.
        """
        place = self.place(index)
        row = self._table.row(place, self._columns)
        if wrong := self._wrong(row):
            raise UnreadableRecord(self.name, self._table.where(place), wrong)
        record = {**row, "image_codes": np.asarray(row["image_codes"], np.int32)}
        if self.class_names and record["label"] is None:
            record["label"] = -1
        return record

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`, to train a tokenizer on."""
        rows = self._table.scan(["text"], self.skip, self.skip + len(self))
        return itertools.islice((text for (texts,) in rows for text in texts or ()), limit)

    def _wrong(self, row: Mapping[str, Any]) -> str:
        codes, wanted = row["image_codes"] or [], self.codes
        if len(codes) != wanted.length:
            return f"{len(codes)} codes where {wanted.length} are wanted"
        if not 0 <= min(codes) <= max(codes) < wanted.vocab_size:
            return f"codes {min(codes)} to {max(codes)}, where there are 0 to {wanted.vocab_size - 1}"
        return ""

    @functools.cached_property
    def _table(self) -> ParquetTable:
        return ParquetTable(self.path, self.cache_mb * 1_000_000, self.storage)

    @property
    def _columns(self) -> list[str]:
        return ["image_codes", "text", "key", *(["label"] if self.class_names else [])]


def _some(names: tuple[str, ...]) -> str:
    """As a message names them."""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})" if names else "none"
