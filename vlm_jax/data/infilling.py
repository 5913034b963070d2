"""Masked infilling: spans of a document are cut out and moved behind its end (CM3, arXiv:2201.07520, section 2)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Int32

from vlm_jax.data.fused_vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens of texts and images as they stand in a row, from the first on.

    Attributes:
      tokens: those at the places of pictures, which are tokenized later, are those of code 0.
      targets: tokens that are learnt.
      image_ids: n at the codes of image n, counted from 1; 0 elsewhere.
      atoms: equal for neighbours that are never parted: an image and its markers.
    """

    tokens: Int32[np.ndarray, "time"]
    targets: Bool[np.ndarray, "time"]
    image_ids: Int32[np.ndarray, "time"]
    atoms: Int32[np.ndarray, "time"]

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, end: int) -> Document:
        """The tokens from `start` to before `end`."""
        return Document(*(getattr(self, field.name)[start:end] for field in dataclasses.fields(self)))


def text(tokens: list[int], learnt: bool = True) -> Document:
    """A document of tokens that can be parted anywhere."""
    count = len(tokens)
    zeros = np.zeros(count, np.int32)
    return Document(np.array(tokens, np.int32), np.full(count, learnt), zeros, np.arange(count, dtype=np.int32))


def joined(parts: list[Document]) -> Document:
    """One document of several; each keeps the numbers of its images."""
    ends = itertools.accumulate((int(part.atoms[-1]) + 1 if len(part) else 0 for part in parts), initial=0)
    moved = [dataclasses.replace(part, atoms=part.atoms + np.int32(end)) for part, end in zip(parts, ends)]
    return Document(*(np.concatenate([getattr(part, field.name) for part in moved])
                      for field in dataclasses.fields(Document)))  # fmt: skip


def infilled(document: Document, vocabulary: Vocabulary, rng: np.random.Generator) -> Document:
    """The document with masks in place of some spans, and behind it each mask again with its span.

    There are as many spans as a Poisson variable of mean 1 says, at least one and at most `vocabulary.sentinels`. Their
    ends are drawn uniformly of all places between atoms, so that no image is split. The mask that stands in a span's
    place is not learnt, since nothing tells where it is; that before the span says where the one before it ends. The
    first token, which begins the document, and the last, which ends it, stay there.
    """
    body = document.part(1, len(document) - 1)
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(body.atoms)) + 1, [len(body)]])
    count = min(max(1, rng.poisson(1.0)), vocabulary.sentinels, len(cuts) // 2)
    ends = np.sort(rng.choice(len(cuts), 2 * count, replace=False))
    spans = cuts[ends].reshape(-1, 2).tolist()
    kept, moved, last = [document.part(0, 1)], [], 0
    for number, (start, end) in enumerate(spans):
        mask = [vocabulary.sentinel(number)]
        kept += [body.part(last, start), text(mask, learnt=False)]
        moved += [text(mask), body.part(start, end)]
        last = end
    return joined([*kept, body.part(last, len(body)), *moved, document.part(len(document) - 1, len(document))])
