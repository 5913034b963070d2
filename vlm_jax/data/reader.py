"""Examples of a source by their index: read, decoded, kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.errors import UserError

# Waits before the second and the third try of a read that failed.
RETRY_SECONDS = (0.2, 1.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A record as it is before augmentation and tokens: decoded image, captions, label (-1 where it has none)."""

    image: UInt8[np.ndarray, "H W 3"]
    texts: tuple[str, ...]
    label: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads examples of a source.

    Attributes:
      source: random access, `source[i] -> dict` of `image`, `text`, `label`.
      decode: encoded image or array -> uint8 [H, W, 3], deterministic.
      needs_text: a record without a caption is unreadable.
      cache: examples kept by index, so that each is decoded once; None keeps none. Threads may share it, since what
        they write for an index is the same.
    """

    source: Any
    decode: Callable[[Any], np.ndarray]
    needs_text: bool = False
    cache: dict[int, Example] | None = None

    def __call__(self, index: int) -> Example:
        """The example at an index.

        Raises:
          UnreadableRecord: it is damaged, or lacks a caption. Whoever asked takes another one, and counts.
          UserError: the source cannot be read, after three tries. An I/O error says nothing about the record, and
            skipping it would change the data without a word.
        """
        example = None if self.cache is None else self.cache.get(index)
        if example is None:
            example = self._decode(self._read(index), index)
            if self.cache is not None:
                self.cache[index] = example
        if self.needs_text and not example.texts:
            raise UnreadableRecord(self.source.name, str(index), "it has no text")
        return example

    def _decode(self, record: dict, index: int) -> Example:
        try:
            image = self.decode(record["image"])
        except UnreadableImage as error:
            raise UnreadableRecord(self.source.name, str(record.get("key", index)), str(error)) from error
        text, label = record.get("text") or (), record.get("label")
        texts = tuple(t for t in ((text,) if isinstance(text, str) else text) if t and not t.isspace())
        return Example(image, texts, -1 if label is None else int(label))

    def _read(self, index: int) -> dict:
        for seconds in RETRY_SECONDS:
            try:
                return self.source[index]
            except OSError:
                time.sleep(seconds)
        try:
            return self.source[index]
        except OSError as error:
            raise UserError(
                f"source {self.source.name!r}: record {index} cannot be read after {len(RETRY_SECONDS) + 1} tries "
                f"({error}); mend the storage and start again, the run resumes where it was."
            ) from error
