"""Zero-shot classification where an image may be of several classes, or of none: mean average precision."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import Predict, Result, embed_source
from vlm_jax.evaluate.zero_shot import ZeroShot
from vlm_jax.report.artifacts import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(ZeroShot):
    """Mean average precision over the classes of a source whose records have `labels`.

    `labels` is int [classes]: 1 where the image is of the class, 0 where it is not, -1 where it is not to count for
    this class (an object that is marked as difficult, or was not annotated). Classes without a positive are left out.
    """

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`mean_average_precision`, and `examples`, the number scored."""
        names = self.names
        more = {"labels": (len(names),)}
        found = embed_source(predict["image_embedding"], self.source, self.image, self.batch_size, mesh, more)
        scores = found.vectors @ self.classes(predict, mesh).T
        labels = found.columns["labels"]
        scored = [k for k in range(len(names)) if (labels[:, k] == 1).any()]
        if not scored:
            raise UserError(f"MultiLabel: {self.source.name} has no image of any of its {len(names)} classes.")
        precision = {}
        for k in scored:
            counts = labels[:, k] >= 0
            precision[names[k]] = average_precision(scores[counts, k], labels[counts, k] == 1)
        shown = [(names[k], int((labels[:, k] == 1).sum()), f"{100 * precision[names[k]]:.1f}%") for k in scored]
        metrics = {"mean_average_precision": float(np.mean([*precision.values()])), "examples": float(len(labels))}
        table = Table("average precision by class", ("class", "images", "average precision"), shown)
        return Result(metrics, {"classes": table})


def average_precision(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    """The area under precision over recall as a step function: sum over thresholds of (R_k - R_k-1) P_k.

    Examples of equal score come in together, as scikit-learn's `average_precision_score` has it; at least one example
    is positive.
    """
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    recall, precision = found[last] / found[-1], found[last] / (last + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())
