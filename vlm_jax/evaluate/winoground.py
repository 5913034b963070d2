"""Winoground's scores: two images and two captions that must be matched (Thrush et al. 2022, section 4.1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import TIE, Evaluator, Predict, Result, embed_rows, embed_source
from vlm_jax.report.artifacts import Table

SCORES = ("text", "image", "group")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Winoground(Evaluator):
    """Whether captions are told apart given an image, images given a caption, and both; a tie is wrong.

    By chance a model gets 1/4, 1/4 and 1/6; one that gives everything the same embedding gets nothing.

    Args:
      source: records 2 i and 2 i + 1 are a pair, `source.caption(record)` the caption of each, `source.tag(i)` the kind
        of the pair. A pair of which an image cannot be read is left out.
    """

    source: Any
    image: ImageTransform
    text: Text

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`text`, `image` and `group` score, `examples`, the number of pairs scored."""
        images = embed_source(predict["image_embedding"], self.source, self.image, self.batch_size, mesh)
        row = {record: k for k, record in enumerate(images.columns["index"].tolist())}
        pairs = [pair for pair in range(len(self.source) // 2) if 2 * pair in row and 2 * pair + 1 in row]
        if not pairs:
            raise UserError(f"Winoground: no pair of {self.source.name} can be read.")
        records = np.array([[2 * pair, 2 * pair + 1] for pair in pairs])
        captions = np.array([[self.source.caption(record) for record in pair] for pair in records.tolist()])
        texts = embed_rows(predict["text_embedding"], self.text(captions.ravel().tolist()), self.batch_size, mesh)
        seen = images.vectors[[row[record] for record in records.ravel().tolist()]]
        dim = seen.shape[1]
        right = matched(np.einsum("pid,pcd->pic", seen.reshape(-1, 2, dim), texts.reshape(-1, 2, dim)))
        tags = np.array([self.source.tag(pair) for pair in pairs])
        rows = {"index": records[:, 0], "other": records[:, 1], "tag": tags, **right}
        rows |= {"truth": captions[:, 0], "other_truth": captions[:, 1]}
        table = [
            (tag, int((tags == tag).sum()), *(f"{100 * right[name][tags == tag].mean():.1f}%" for name in SCORES))
            for tag in sorted(set(tags.tolist()))
        ]
        metrics = {name: float(right[name].mean()) for name in SCORES}
        artifacts = {"tags": Table("scores by tag", ("tag", "pairs", *SCORES), table)}
        return Result({**metrics, "examples": float(len(pairs))}, artifacts, {"pairs": rows})


def matched(scores: Float[np.ndarray, "pairs 2 2"]) -> dict[str, Bool[np.ndarray, "pairs"]]:
    """The three scores from similarities [pair, image, caption], of which the diagonal is right."""
    a, b, c, d = scores[:, 0, 0], scores[:, 0, 1], scores[:, 1, 0], scores[:, 1, 1]
    text = (a > b + TIE) & (d > c + TIE)
    image = (a > c + TIE) & (d > b + TIE)
    return {"text": text, "image": image, "group": text & image}
