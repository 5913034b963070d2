"""What evaluators share: results, and embeddings of a whole source on all devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from vlm_jax import mesh as meshes

Predict = Mapping[str, Callable]


class Result(dict[str, float]):
    """Metrics by name, with `artifacts` for the report (see `vlm_jax.report.artifacts`)."""

    def __init__(self, metrics: Mapping[str, float], artifacts: Mapping[str, Any] | None = None):
        super().__init__(metrics)
        self.artifacts = dict(artifacts or {})


def rounded(batch_size: int, mesh: Mesh) -> int:
    """The batch size that divides over the devices: evaluation pads, so it never has to fail on this."""
    ways = meshes.batch_devices(mesh)
    return -(-batch_size // ways) * ways


def embed(function: Callable, rows: np.ndarray, batch_size: int, mesh: Mesh) -> Float[np.ndarray, "n dim"]:
    """`function` of all rows (the same on every process), in padded batches, gathered to every process."""
    size = rounded(min(batch_size, max(len(rows), 1)), mesh)
    mine = meshes.local_rows(mesh, size)
    out = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        batch = meshes.put({"x": padded[mine]}, mine, size, mesh)
        out.append(meshes.gather(function(batch["x"]), mesh)[: len(part)])
    return np.concatenate(out)


def replicate(x: np.ndarray, mesh: Mesh) -> jax.Array:
    return jax.device_put(x, meshes.replicated(mesh))
