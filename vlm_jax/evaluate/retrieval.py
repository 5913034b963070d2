"""Retrieval both ways: does the right caption come first for an image, and the right image for a caption?"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

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
        to_text, to_image = retrieve(images.vectors, embedded, owner, caption_ids(rows))
        metrics, tables = {}, {}
        for name, found, query in (("image_to_text", to_text, records), ("text_to_image", to_image, records[owner])):
            hits = {f"{name}_r{k}": found.rank < k for k in RANKS}
            metrics |= {key: float(hit.mean()) for key, hit in hits.items()}
            tables[name] = {"index": query, **hits}
        captions = np.array(texts)
        tables["image_to_text"] |= {"truth": captions[_first(owner)], "answer": captions[to_text.best]}
        tables["text_to_image"] |= {"truth": captions, "answer_index": records[to_image.best]}
        artifacts = {"similarity": self._similarity(images.vectors, embedded, texts, owner)}
        artifacts["top images"] = self._gallery(images.vectors, embedded, texts, owner, caption_ids(rows), records)
        return Result({**metrics, "examples": float(len(images.vectors))}, artifacts, tables)

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


def _first(owner: Int[np.ndarray, "m"]) -> Int[np.ndarray, "n"]:
    """The first text of every image."""
    return np.unique(owner, return_index=True)[1]


class Found(NamedTuple):
    """For every query how many wrong keys score at least as high as its best right one, and the key that it found.

    That is the best right one where there are none, and the best wrong one else.
    """

    rank: Int[np.ndarray, "queries"]
    best: Int[np.ndarray, "queries"]


def recalls(
    images: Float[np.ndarray, "n dim"],
    texts: Float[np.ndarray, "m dim"],
    owner: Int[np.ndarray, "m"],
    ids: Int[np.ndarray, "m"],
    block: int = 1024,
) -> dict[str, float]:
    """Recall at 1, 5, 10 both ways; see `retrieve`."""
    both = zip(("image_to_text", "text_to_image"), retrieve(images, texts, owner, ids, block))
    return {f"{name}_r{k}": float((found.rank < k).mean()) for name, found in both for k in RANKS}


def retrieve(
    images: Float[np.ndarray, "n dim"],
    texts: Float[np.ndarray, "m dim"],
    owner: Int[np.ndarray, "m"],
    ids: Int[np.ndarray, "m"],
    block: int = 1024,
) -> tuple[Found, Found]:
    """Texts for images and images for texts; text j belongs to image owner[j], texts of equal `ids` are one caption.

    An image and a text belong together also by way of an equal caption. Worked through in blocks of queries, so that
    memory grows with n + m and not with their product.
    """
    kinds, kind = np.unique(ids, return_inverse=True)

    def search(queries, keys, right_of) -> Found:
        ranks, best = [], []
        for start in range(0, len(queries), block):
            scores = queries[start : start + block] @ keys.T
            right = right_of(start, len(scores))
            top = np.where(right, scores, -np.inf).max(1, keepdims=True)
            ranks.append(((scores >= top - TIE) & ~right).sum(1))
            found = ranks[-1][:, None] == 0
            best.append(np.where(right == found, scores, -np.inf).argmax(1))
        return Found(np.concatenate(ranks), np.concatenate(best))

    def texts_of(start: int, count: int) -> Bool[np.ndarray, "count m"]:
        mine = (owner >= start) & (owner < start + count)
        has = np.zeros((count, len(kinds)), bool)
        has[owner[mine] - start, kind[mine]] = True
        return has[:, kind]

    def images_of(start: int, count: int) -> Bool[np.ndarray, "count n"]:
        wanted, row = np.unique(kind[start : start + count], return_inverse=True)
        place = np.minimum(np.searchsorted(wanted, kind), len(wanted) - 1)
        same = wanted[place] == kind
        has = np.zeros((len(wanted), len(images)), bool)
        has[place[same], owner[same]] = True
        return has[row]

    return search(images, texts, texts_of), search(texts, images, images_of)
