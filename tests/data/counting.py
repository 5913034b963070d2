"""A source that counts how often its records are read, and pipelines of it."""

from __future__ import annotations

import collections
import dataclasses
import threading

from tests.data.numbered import VARIED, png
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.text import Text

TEXT = Text(length=12)


@dataclasses.dataclass
class Source:
    """Images whose pixels, captions and labels all say which record they are."""

    length: int = 50
    name: str = "numbers"
    fingerprint: str = "f"
    class_names: tuple[str, ...] = ("even", "odd")
    broken: frozenset[int] = frozenset()  # bytes that are no image
    torn: frozenset[int] = frozenset()  # records that cannot be parsed
    failing: frozenset[int] = frozenset()  # records that cannot be read

    def __post_init__(self):
        self.reads = collections.Counter()
        self.lock = threading.Lock()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with self.lock:
            self.reads[index] += 1
        if index in self.failing:
            raise OSError("no such disk")
        if index in self.torn:
            raise UnreadableRecord(self.name, f"key{index}", "torn")
        captions = [f"{word} {index}" for word in ("one", "two", "three")]
        return {"image": b"junk" if index in self.broken else png(index), "text": captions, "label": index % 2}


def make(source=None, image=VARIED, text=TEXT, threads=0, **options):
    return Pipeline(source=Source() if source is None else source, image=image, text=text, threads=threads, **options)


def records(batch) -> list[int]:
    """The records that rows come from, by their captions."""
    return [int(caption.split()[1]) for caption in TEXT.decode(batch["text"])]
