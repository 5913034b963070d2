"""Examples of a source by their index: read, decoded, kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.errors import UnreadableImage, UnreadableRecord
from vlm_jax.errors import Fault

# Waits before the second and the third try of a read that failed.
RETRY_SECONDS = (0.5, 4.0)
# Characters of a caption; a longer one is a page, or a file that went astray.
LONGEST_CAPTION = 2**16


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A record as it is before augmentation and tokens: decoded image, captions, label (-1 where it has none).

    `more` are other numbers of it, as many as were asked for.
    """

    image: UInt8[np.ndarray, "H W 3"]
    texts: tuple[str, ...]
    label: int
    more: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads examples of a source.

    Attributes:
      source: random access, `source[i] -> dict` of `image`, `text`, `label`.
      decode: encoded image or array -> uint8 [H, W, 3], deterministic.
      needs_text: a record without a caption is unreadable; else captions are left out.
      cache: examples kept by index, so that each is decoded once; None keeps none. Threads may share it, since what
        they write for an index is the same.
      more: entries of a record that are kept beside those, such as its group.
    """

    source: Any
    decode: Callable[[Any], np.ndarray]
    needs_text: bool = False
    cache: dict[int, Example] | None = None
    templates: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def __call__(self, index: int) -> Example:
        """The example at an index.

        Raises:
          UnreadableRecord: it is damaged, or has no caption that can be trained on. Whoever asked takes another one,
            and counts.
          Fault: the source cannot be read, after three tries. An I/O error says nothing about the record, and
            skipping it would change the data without a word.
        """
        example = None if self.cache is None else self.cache.get(index)
        if example is None:
            example = self.example(self.record(index), index)
            if self.cache is not None:
                self.cache[index] = example
        return example

    def example(self, record: dict, index: int) -> Example:
        """What a record holds, decoded. Raises: UnreadableRecord."""
        try:
            image = self.decode(record["image"])
            label = -1 if record.get("label") is None else int(record["label"])
            texts = self._texts(record, label) if self.needs_text else ()
            return Example(image, texts, label, tuple(record[name] for name in self.more))
        except (UnreadableImage, UnreadableText) as error:
            raise UnreadableRecord(self.source.name, str(record.get("key", index)), str(error)) from error

    def _texts(self, record: dict, label: int) -> tuple[str, ...]:
        if self.templates:
            names = self.source.class_names
            if not 0 <= label < len(names):
                raise UnreadableText("it has no class name")
            return tuple(template.format(names[label]) for template in self.templates)
        text = record.get("text") or ()
        texts = tuple(t for t in ((text,) if isinstance(text, (str, bytes)) else text) if says_something(t))
        if not texts:
            raise UnreadableText("it has no text")
        return texts

    def record(self, index: int) -> dict:
        """The record at an index as the source gives it. Raises: as a call does."""
        for seconds in RETRY_SECONDS:
            try:
                return self._record(index)
            except OSError:
                time.sleep(seconds)
        try:
            return self._record(index)
        except OSError as error:
            raise Fault(
                f"source {self.source.name!r}: record {index} cannot be read after {len(RETRY_SECONDS) + 1} tries "
                f"({error}); mend the storage and start again, the run resumes where it was."
            ) from error

    def _record(self, index: int) -> dict:
        try:
            return self.source[index]
        except UnicodeDecodeError as error:  # of a format that stores text as bytes
            raise UnreadableRecord(self.source.name, str(index), f"its text is not UTF-8: {error.reason}") from error


class UnreadableText(ValueError):
    """A caption that cannot be trained on; its text is the reason, in one line."""


def says_something(text: Any) -> bool:
    """Whether a text is more than blanks. Raises: UnreadableText."""
    if not text:
        return False
    if not isinstance(text, str):
        raise UnreadableText(f"its text is of type {type(text).__name__}")
    if len(text) > LONGEST_CAPTION:
        raise UnreadableText(f"a caption of {len(text)} characters, the most is {LONGEST_CAPTION}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, or a byte that was let through when it was read
            raise UnreadableText(f"its text is not UTF-8: {error.reason}") from error
    return not text.isspace()
