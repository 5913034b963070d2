"""`Interleaved`: documents in which texts and images follow one another, as OBELICS and MMC4 have them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.base import Missing
from vlm_jax.data.sources.image_store import ImageStore
from vlm_jax.data.sources.parquet_table import ParquetTable
from vlm_jax.data.sources.text_table import TextTable
from vlm_jax.data.sources.window import Window
from vlm_jax.data.storage import Storage, content_hash
from vlm_jax.errors import UserError, closest

# Layout -> the columns of images and of texts.
LAYOUTS = {"obelics": ("images", "texts"), "mmc4": ("image_info", "text_list")}
MISSING = ("refuse", "drop")


@dataclasses.dataclass(frozen=True)
class Interleaved(Window):
    """Documents as sequences of texts and images, read at random.

    "obelics" (Laurençon et al. 2023): two lists of the same length, `images` and `texts`, of which one has a value at
    each place. "mmc4" (Zhu et al. 2023): sentences `text_list`, and `image_info` whose `matched_text_index` is the
    sentence before which an image stands.

    Attributes:
      path: Parquet or JSONL files: a file, a folder of Parquet files, a pattern.
      layout: "obelics" | "mmc4".
      images: where images lie that rows only name: a folder, a URL, or tars ("images/*.tar") whose members have those
        names. None where rows hold the bytes.
      missing: what becomes of a document that lacks an image: "refuse" counts it as unreadable, "drop" goes on without
        the image, and the record says how many there were.
      skip: documents to leave out at the start.
      limit: documents to use after that; None uses all.
      cache_mb: memory for row groups of Parquet files, in megabytes (1e6 bytes).
      index: where indexes are kept: None for the cache folder of `storage`, "beside" for the folder of the files, else
        a folder or URL.
      storage: how files are read.
    """

    path: str
    layout: str = "obelics"
    images: str | None = None
    missing: str = "refuse"
    skip: int = 0
    limit: int | None = None
    cache_mb: int = 2000
    index: str | None = None
    storage: Storage = Storage()

    KIND: ClassVar[str] = "interleaved"
    ROWS: ClassVar[str] = "documents"
    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for an unknown layout, a missing column, images that are only named, or no documents."""
        for field, choices in (("layout", LAYOUTS), ("missing", MISSING)):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"Interleaved.{field}={getattr(self, field)!r}: {closest(getattr(self, field), choices)}"
                )
        self.check_options()
        for file, columns in self._columns():
            for column in LAYOUTS[self.layout]:
                if columns and column not in columns:
                    raise UserError(
                        f"{file} has no column {column!r} (layout {self.layout!r}): {closest(column, columns)}"
                    )
        self.check_count()
        if self.images is None and self._only_names():
            raise UserError(f"{self.path} names its images and does not hold them: say where they lie (`images`).")
        _ = self._store

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names and sizes and of what is read of them; not of where they lie."""
        files = [(file.name, file.size) for file in self._rows.files]
        return content_hash(json.dumps([files, self.layout, self.missing, self.skip, self.limit]))

    def count(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        """`parts`, a list of texts (str) and encoded images (bytes) in their order; `dropped`, how many images were
        left out; `key`, file and row.

        Raises: UnreadableRecord for a broken document; OSError or UserError where the files cannot be read.
        """
        place = self.place(index)
        key = self._rows.where(place)
        try:
            parts, dropped = self._with_images(self._sequence(place))
            if not parts:
                raise Missing("the document is empty")
        except Missing as missing:
            raise UnreadableRecord(self.name, key, str(missing)) from None
        return {"parts": parts, "dropped": dropped, "key": key}

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """The texts, at most `limit`, to train a tokenizer on."""
        return itertools.islice(self._texts(), limit)

    def _texts(self) -> Iterator[str]:
        broken = 0
        for index in range(self.skip, self.skip + len(self)):
            try:
                yield from (part for part, is_text in self._sequence(index) if is_text)
            except Missing:
                broken += 1
        if broken:
            logging.warning("%s: %d of %d documents are broken", self.name, broken, len(self))

    def _sequence(self, index: int) -> list[tuple[Any, bool]]:
        """Texts and images as they stand in the row, each with whether it is a text.

        Raises: Missing for a row that is not as the layout says.
        """
        names = LAYOUTS[self.layout]
        row = self._rows.row(index, list(names)) if isinstance(self._rows, ParquetTable) else self._rows[index]
        images, texts = (row.get(name) for name in names)
        if not isinstance(images, list) or not isinstance(texts, list):
            raise Missing(f"{names[0]} and {names[1]} are not both lists")
        parts = _paired(images, texts) if self.layout == "obelics" else _matched(images, texts)
        return [(part, is_text) for part, is_text in parts if not is_text or part.strip()]

    def _with_images(self, sequence: list[tuple[Any, bool]]) -> tuple[list[str | bytes], int]:
        parts: list[str | bytes] = []
        dropped = 0
        for part, is_text in sequence:
            try:
                parts.append(part if is_text else self._image(part))
            except Missing:
                if self.missing == "refuse":
                    raise
                dropped += 1
        return parts, dropped

    def _image(self, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("image_name") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value or self._store is None:
            raise Missing(f"an image is {str(value)[:40]!r}, wanted are its bytes or its name")
        try:
            return self._store(value)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"there is no image {value}") from None

    def _only_names(self) -> bool:
        """Whether the first document with an image has only the name of it."""
        for index in range(self.skip, min(len(self._rows), self.skip + 100)):
            try:
                found = [part for part, is_text in self._sequence(index) if not is_text]
            except Missing:
                continue
            if found:
                held = found[0].get("bytes") if isinstance(found[0], dict) else found[0]
                return not isinstance(held, bytes)
        return False

    def _columns(self) -> Iterator[tuple[str, list[str]]]:
        rows = self._rows
        for k, file in enumerate(rows.files):
            try:
                yield file.path, rows.schemas[k].names if isinstance(rows, ParquetTable) else rows.columns(k)
            except Missing as missing:
                raise UserError(f"{file.path}: {missing}.") from None

    @functools.cached_property
    def _rows(self) -> ParquetTable | TextTable:
        if self.path.endswith((".jsonl", ".ndjson")):
            return TextTable(self.path, self.storage, self.index)
        return ParquetTable(self.path, self.cache_mb * 10**6, self.storage)

    @functools.cached_property
    def _store(self) -> ImageStore | None:
        return None if self.images is None else ImageStore(self.images, self.storage, self.index)


def _paired(images: list, texts: list) -> Iterator[tuple[Any, bool]]:
    if len(images) != len(texts):
        raise Missing(f"{len(images)} images and {len(texts)} texts, where each place has one of the two")
    for place, (image, text) in enumerate(zip(images, texts)):
        if (image is None) == (text is None) or not isinstance(text, str | None):
            raise Missing(f"place {place} has not one of image and text")
        yield (image, False) if text is None else (text, True)


def _matched(images: list, texts: list) -> Iterator[tuple[Any, bool]]:
    if not all(isinstance(text, str) for text in texts):
        raise Missing("text_list is not a list of strings")
    before: dict[int, list] = {}
    for image in images:
        at = image.get("matched_text_index") if isinstance(image, dict) else None
        if not isinstance(at, int) or not 0 <= at < len(texts):
            raise Missing(f"matched_text_index is {at!r}, where there are {len(texts)} texts")
        before.setdefault(at, []).append(image)
    for place, text in enumerate(texts):
        yield from ((image, False) for image in before.get(place, ()))
        yield text, True
