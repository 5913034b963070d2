"""`Located`: a source whose records also say where things are, in words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_jax.errors import UserError

CAPTION, REFER, GROUND = "cap", "aref", "gcap"


@dataclasses.dataclass(frozen=True)
class Located:
    """Another source, whose records get `prompted` texts for a decoder (LocCa: Wan et al. 2024, arXiv:2403.19596).

    Of every caption, ("cap", caption); of every region that is described, ("aref DESCRIPTION", "X0 Y0 X1 Y1") and
    ("gcap X0 Y0 X1 Y1", "DESCRIPTION"): what is given and what is predicted is as in SigLIP 2 (Tschannen et al. 2025,
    arXiv:2502.14786, section 2.2). Coordinates are whole numbers from 0 to `bins`; words for the tasks have no
    punctuation, so that they stay themselves however texts are made canonical.

    A record's regions are its `objects`, each with `text` and `box`, [x0, y0, x1, y1] as fractions of the image's width
    and height; or those that the source's own `regions(index)` gives. A record without any has captions alone.

    Attributes:
      source: the other one.
      bins: 500 as in LocCa (recalled).
    """

    source: Any
    bins: int = 500

    def __post_init__(self):
        if self.bins < 2:
            raise UserError(f"Located.bins={self.bins}: wanted are at least 2.")

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(("located", self.bins, self.source.fingerprint)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        """The record, and its `prompted`: by task, (prompt, answer) pairs."""
        record = self.source[index]
        texts = record.get("text") or ()
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        regions = self.regions(record, index)
        captions = tuple((CAPTION, text) for text in texts)
        refer = tuple((f"{REFER} {text}", self.written(box)) for text, box in regions)
        ground = tuple((f"{GROUND} {self.written(box)}", text) for text, box in regions)
        return {**record, "prompted": (captions, refer, ground)}

    def regions(self, record: dict, index: int) -> list[tuple[str, Sequence[float]]]:
        """Descriptions and boxes of what is in the image."""
        if "objects" in record:
            return [(region["text"], region["box"]) for region in record["objects"] or ()]
        return self.source.regions(index) if hasattr(self.source, "regions") else []

    def written(self, box: Sequence[float]) -> str:
        """A box in words."""
        return " ".join(str(min(self.bins, max(0, round(edge * self.bins)))) for edge in box)

    def read(self, text: str) -> tuple[float, float, float, float] | None:
        """The box that a text names, or None where it names none."""
        words = text.split()
        if len(words) != 4 or not all(word.isdecimal() and int(word) <= self.bins for word in words):
            return None
        return tuple(int(word) / self.bins for word in words)

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Everything that is to be tokenized of the first records, at most `limit` texts."""

        def texts():
            for index in range(len(self)):
                record = self[index]
                for prompt, answer in itertools.chain.from_iterable(record["prompted"]):
                    yield from (prompt, answer)

        return itertools.islice(texts(), limit)
