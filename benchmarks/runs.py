"""What benchmarks read of runs, and how they show pixels."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlm_jax.report import read_metrics


def last_values(workdir: pathlib.Path) -> dict[str, Any]:
    """The last value of each of a run's metrics, and its last `step`."""
    found: dict[str, Any] = {}
    for line in read_metrics(workdir / "metrics.jsonl"):
        found |= line
    return found


def under(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Those whose names begin so, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def enlarged(pixels: UInt8[np.ndarray, "height width 3"], scale: int) -> Image.Image:
    """Squares of `scale` pixels for each."""
    return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
