"""`Messages`: conversations about images, as LLaVA, OpenAI and Hugging Face write them down."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

from vlm_jax.data.chat_template import IMAGE
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.base import Missing, strings
from vlm_jax.data.sources.image_store import ImageStore
from vlm_jax.data.sources.parquet_table import ParquetTable
from vlm_jax.data.sources.text_table import TextTable
from vlm_jax.data.sources.turns import IMAGES, TURNS, held, turns_of
from vlm_jax.data.sources.window import Window
from vlm_jax.data.storage import Storage, content_hash, is_remote
from vlm_jax.errors import UserError, closest

SUFFIXES = (".json", ".jsonl", ".ndjson")
MORE = ("answers", "type")
LOOKED_AT = 100  # rows, for whether images are in them or only named


@dataclasses.dataclass(frozen=True)
class Messages(Window):
    """Conversations with or without images, read at random.

    A row has turns: `conversations`, a list of {"from": "human" | "gpt", "value": TEXT} (LLaVA, ShareGPT), or
    `messages`, a list of {"role", "content"}, where content is a text or a list of {"type": "text", "text": TEXT} and
    {"type": "image"}. Images are in `image` or `images`, one or a list, in the order of "<image>" or of those parts:
    names, or bytes, or {"bytes", "path"} as Hugging Face writes them. Or the parts hold them ("image", "path", "url",
    "image_url"; names, URLs, "data:image/png;base64,..."). `answers` and `type` are kept where a row has them.

    Attributes:
      path: a list in `.json`, `.jsonl`, or Parquet: a file, a folder of Parquet files, a pattern.
      images: where images lie that rows only name: a folder, a URL, or tars ("images/*.tar") whose members have those
        names. None where rows hold the bytes.
      skip: conversations to leave out at the start.
      limit: conversations to use after that; None uses all.
      cache_mb: memory for row groups of Parquet files, in megabytes (1e6 bytes).
      index: where indexes are kept: None for the cache folder of `storage`, "beside" for the folder of the files, else
        a folder or URL.
      storage: how files are read.
    """

    path: str
    images: str | None = None
    skip: int = 0
    limit: int | None = None
    cache_mb: int = 2000
    index: str | None = None
    storage: Storage = Storage()

    KIND: ClassVar[str] = "messages"
    ROWS: ClassVar[str] = "conversations"
    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for rows without turns, images that are only named, or no conversations."""
        self.check_options()
        for k, file in enumerate(self._rows.files):
            columns = self._columns(k)
            if columns and not set(TURNS) & set(columns):
                near = closest(TURNS[0], columns)
                raise UserError(f"{file.path} has no column {' or '.join(map(repr, TURNS))}: {near}")
        self.check_count()
        if self.images is None and (name := self._first_name()):
            raise UserError(
                f"{self.path} names its images ({name[:80]}) and does not hold them: say where they lie (`images`)."
            )
        _ = self._store

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names and sizes and of what is read of them; not of where they lie."""
        files = [(file.name, file.size) for file in self._rows.files]
        return content_hash(json.dumps([files, self.skip, self.limit]))

    def count(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        """`messages`, a list of {"role", "content"}; `images`, encoded, in their order, where it has any; `answers` and
        `type` where the row has them; `key`, file and row.

        Raises: UnreadableRecord for a broken row; OSError or UserError where the files cannot be read.
        """
        place = self.place(index)
        key = self._rows.where(place)
        try:
            row = self._row(place)
            messages, images = turns_of(row)
            record: dict[str, Any] = {"messages": messages, "key": key}
            if images:
                record["images"] = [self._image(value) for value in images]
            if row.get("answers") is not None:
                record["answers"] = strings(row["answers"], "answers")
            if row.get("type") is not None:
                record["type"] = str(row["type"])
        except Missing as missing:
            raise UnreadableRecord(self.name, key, str(missing)) from None
        return record

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """The texts of turns, questions and answers, at most `limit`, to train a tokenizer on."""
        return itertools.islice(self._texts(), limit)

    def _texts(self) -> Iterator[str]:
        broken = 0
        for index in range(self.skip, self.skip + len(self)):
            try:
                messages, _ = turns_of(self._row(index))
            except Missing:
                broken += 1
                continue
            for message in messages:
                content = message["content"]
                parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
                yield from (text for part in parts for text in part.split(IMAGE) if text.strip())
        if broken:
            logging.warning("%s: %d of %d conversations are broken", self.name, broken, len(self))

    def _row(self, index: int) -> dict[str, Any]:
        """Raises: Missing for a row that is none."""
        if isinstance(self._rows, TextTable):
            return self._rows[index]
        return self._rows.row(index, self._read)

    def _image(self, value: Any) -> bytes:
        value = held(value)
        if isinstance(value, bytes):
            return value
        if value.startswith("data:"):
            try:
                return base64.b64decode(value.partition(",")[2], validate=True)
            except binascii.Error:
                raise Missing("an image is no base64") from None
        try:
            if is_remote(value):
                return self.storage.fetch(value)
            if self._store is None:
                raise Missing(f"there is no folder of images for {value}")
            return self._store(value)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"there is no image {value}") from None

    def _first_name(self) -> str | None:
        """The first image that is only named, in the first row with images."""
        for index in range(self.skip, min(len(self._rows), self.skip + LOOKED_AT)):
            try:
                found = [held(value) for value in turns_of(self._row(index))[1]]
            except Missing:
                continue
            if found:
                names = [v for v in found if isinstance(v, str) and not v.startswith("data:") and not is_remote(v)]
                return names[0] if names else None
        return None

    def _columns(self, k: int) -> list[str]:
        if isinstance(self._rows, ParquetTable):
            return self._rows.schemas[k].names
        try:
            return self._rows.columns(k)
        except Missing as missing:
            raise UserError(f"{self._rows.files[k].path}: {missing}.") from None

    @functools.cached_property
    def _read(self) -> list[str]:
        everywhere = set.intersection(*(set(schema.names) for schema in self._rows.schemas))
        return [name for name in (*TURNS, *IMAGES, *MORE) if name in everywhere]

    @functools.cached_property
    def _rows(self) -> ParquetTable | TextTable:
        if self.path.endswith(SUFFIXES):
            return TextTable(self.path, self.storage, self.index, SUFFIXES)
        return ParquetTable(self.path, self.cache_mb * 10**6, self.storage)

    @functools.cached_property
    def _store(self) -> ImageStore | None:
        return None if self.images is None else ImageStore(self.images, self.storage, self.index)
