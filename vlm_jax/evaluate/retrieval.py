"""Retrieval both ways: does the right caption come first for an image, and the right image for a caption?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text, caption_ids
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import TIE, Evaluator, Predict, Result, embed_rows, embed_source
from vlm_jax.report.artifacts import Gallery, Matrix

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(Evaluator):
    """Recall at 1, 5 and 10 over a source of images with captions, both ways.

    An image counts as found where any of its captions is; captions that are the same tokens are all right, and so are
    their images. Ties are ranked pessimistically, so that a collapsed model scores 0.

    Args:
      captions: how many captions of each image take part (the first ones).
      shown: pictures of the report: pairs of the similarity matrix, and queries with their five best images.
    """

    source: Any
    image: ImageTransform
    text: Text
    captions: int = 1
    shown: tuple[int, int] = (24, 6)

    def validate(self) -> None:
        super().validate()
        if self.captions < 1:
            raise UserError(f"Retrieval.captions={self.captions} must be at least 1.")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`image_to_text_r1`, `_r5`, `_r10` and `text_to_image_r1`, ...; `examples`, the number of images."""
        images = embed_source(predict["image_embedding"], self.source, self.image, self.batch_size, mesh)
        records = images.columns["index"]
        texts, owner = self._captions(records)
        rows = self.text(texts)
        embedded = embed_rows(predict["text_embedding"], rows, self.batch_size, mesh)
        found = recalls(images.vectors, embedded, owner, caption_ids(rows))
        artifacts = {"similarity": self._similarity(images.vectors, embedded, texts, owner)}
        artifacts["top images"] = self._gallery(images.vectors, embedded, texts, owner, caption_ids(rows), records)
        return Result({**found, "examples": float(len(images.vectors))}, artifacts)

    def _captions(self, records: np.ndarray) -> tuple[list[str], np.ndarray]:
        """All captions, and the row of the image that each belongs to."""
        texts, owner = [], []
        for i, record in enumerate(records.tolist()):
            text = self.source[record]["text"]
            mine = [text] if isinstance(text, str) else list(text)[: self.captions]
            texts += mine
            owner += [i] * len(mine)
        return texts, np.asarray(owner)

    def _similarity(self, images, texts, captions, owner) -> Matrix:
        """The first pairs whose captions differ."""
        first = list({captions[j]: j for j in reversed(range(min(len(captions), 10 * self.shown[0])))}.values())
        chosen = sorted(first)[: self.shown[0]]
        values = images[owner[chosen]] @ texts[chosen].T
        labels = [captions[j] for j in chosen]
        return Matrix("cosine similarity of images (rows) and captions (columns)", values, labels, labels)

    def _gallery(self, images, texts, captions, owner, ids, records) -> Gallery:
        """The five best images of the first few different captions."""
        first = list(dict.fromkeys(captions))[: self.shown[1]]
        rows = []
        for caption in first:
            j = captions.index(caption)
            scores = images @ texts[j]
            right = set(owner[ids == ids[j]].tolist())
            best = np.argsort(-scores, kind="stable")[:5]
            shown = [
                (self.image(self.source[int(records[i])]["image"]), f"{scores[i]:.2f}", int(i) in right) for i in best
            ]
            rows.append((caption, shown))
        return Gallery("best images for a caption", rows)


def recalls(
    images: Float[np.ndarray, "n dim"],
    texts: Float[np.ndarray, "m dim"],
    owner: Int[np.ndarray, "m"],
    ids: Int[np.ndarray, "m"],
    block: int = 1024,
) -> dict[str, float]:
    """Recall at 1, 5, 10 both ways; text j belongs to image owner[j], texts of equal `ids` are the same caption.

    Worked through in blocks of queries, so that memory grows with n + m and not with their product.
    """
    # right[i, j]: image i and text j belong together, also by way of an equal caption
    kinds, kind = np.unique(ids, return_inverse=True)
    has = np.zeros((len(images), len(kinds)), bool)
    has[owner, kind] = True

    def way(queries, keys, right_of) -> dict[int, float]:
        best = []
        for start in range(0, len(queries), block):
            scores = queries[start : start + block] @ keys.T
            right = right_of(slice(start, start + block))
            top = np.where(right, scores, -np.inf).max(1, keepdims=True)
            best.append(((scores >= top - TIE) & ~right).sum(1))
        rank = np.concatenate(best)
        return {k: float((rank < k).mean()) for k in RANKS}

    to_text = way(images, texts, lambda rows: has[rows][:, kind])
    to_image = way(texts, images, lambda rows: has[:, kind[rows]].T)
    return {
        f"{name}_r{k}": r[k] for name, r in (("image_to_text", to_text), ("text_to_image", to_image)) for k in RANKS
    }
