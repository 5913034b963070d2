"""Rows of training batches that hold documents of texts and images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from vlm_jax.data.documents import Document, DocumentReader
from vlm_jax.data.rows import RowGenerator, Rows, halves


class DocumentRows(Rows):
    """Makes the rows of any global example indices; see `vlm_jax.data.documents.Documents`. It pickles."""

    reader = DocumentReader

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        pipeline = self._pipeline
        return pipeline.documents.spec(pipeline.image.size, pipeline.text.length) | {"example_id": ((2,), "uint32")}

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        """The rows, and place, source, key and reason of each one whose own record was unreadable, or lacks images."""
        documents, text = self._pipeline.documents, self._pipeline.text
        batch = {name: np.zeros((len(indices), *shape), dtype) for name, (shape, dtype) in self.spec.items()}
        batch["text"] += np.int32(text.pad_id)
        batch["example_id"] = halves(indices)
        generator, unreadable = RowGenerator(self._seed), []
        for at, (index, (part, document, failure)) in enumerate(zip(indices.tolist(), self.examples(indices))):
            if (told := failure or document.lacks) is not None:
                unreadable.append((at, part.name, *told))
            rng = generator(index)
            parts = self._parts_of(document, part, rng.random())
            placed = documents.place([self._tokens(part) for part in parts], text, rng.random())
            count = len(placed.tokens)
            batch["text"][at, :count] = placed.tokens
            batch["text_image_ids"][at, :count] = placed.image_ids
            batch["target_mask"][at, :count] = batch["text_image_ids"][at, :count] == 0
            batch["image_mask"][at, : len(placed.images)] = True
            for place, number in enumerate(placed.images):
                batch["image"][at, place] = part.augment(parts[number], rng)
        return batch, unreadable

    def _parts_of(self, document: Document, part, draw: float) -> Sequence[str | np.ndarray]:
        """Texts and images, with texts that no image separates as one, and of several captions the one of this row."""
        parts = (part.choose(each, draw) if isinstance(each, tuple) else each for each in document.parts)
        joined: list[str | np.ndarray] = []
        for is_text, run in itertools.groupby(parts, lambda each: isinstance(each, str)):
            found = list(run)
            joined += [self._pipeline.documents.separator.join(found)] if is_text else found
        return joined

    def _tokens(self, part: str | np.ndarray) -> list[int] | None:
        text = self._pipeline.text
        return text.model.encode(text.canonical(part)) if isinstance(part, str) else None
