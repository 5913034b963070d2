"""Accuracy by group, and of the group that fares worst (Sagawa et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def by_group(right: Bool[np.ndarray, "n"], group: Int[np.ndarray, "n"], names: Sequence[str]) -> dict[str, float]:
    """`worst_group` and `group/NAME` of every group that has examples; a negative group is none."""
    accuracy = {name: float(right[group == g].mean()) for g, name in enumerate(names) if (group == g).any()}
    if not accuracy:
        return {}
    return {"worst_group": min(accuracy.values())} | {f"group/{name}": value for name, value in accuracy.items()}
