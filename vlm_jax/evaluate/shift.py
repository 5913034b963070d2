"""Distribution shift: what accuracy is left where the images come from elsewhere (Taori et al. 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import Evaluator, Predict, Result
from vlm_jax.evaluate.zero_shot import ZeroShot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Evaluator):
    """Zero-shot accuracy on several sources, and how far each falls below the first.

    Args:
      parts: evaluators by name, each with its own source and classes (ImageNet-A and -R have 200 of the 1,000). The
        first is the reference.
    """

    parts: Mapping[str, ZeroShot]

    def validate(self) -> None:
        super().validate()
        if len(self.parts) < 2:
            raise UserError(f"Shift.parts has {len(self.parts)} evaluators; wanted are a reference and at least one.")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`NAME/top1` of all parts, `NAME/drop` of all but the first, `mean_top1` and `mean_drop` of those."""
        results = {name: evaluator(predict, mesh) for name, evaluator in self.parts.items()}
        (reference, first), *others = results.items()
        metrics = {f"{reference}/top1": first["top1"]}
        for name, result in others:
            metrics |= {f"{name}/top1": result["top1"], f"{name}/drop": first["top1"] - result["top1"]}
        metrics["mean_top1"] = float(np.mean([result["top1"] for _, result in others]))
        metrics["mean_drop"] = first["top1"] - metrics["mean_top1"]
        metrics["examples"] = sum(result["examples"] for result in results.values())
        rows = {name: _renamed(name, result.rows["images"]) for name, result in results.items()}
        return Result(metrics, {f"{n}: {k}": a for n, r in results.items() for k, a in r.artifacts.items()}, rows)


def _renamed(name: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The column of the metric under the name that the metric has here."""
    return {f"{name}/top1" if column == "top1" else column: values for column, values in rows.items()}
