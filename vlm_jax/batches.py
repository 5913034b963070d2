"""A run's training batches: what each process reads of them."""

from __future__ import annotations

import jax
import numpy as np

from vlm_jax import mesh as meshes
from vlm_jax.startup import Plan


def open_batches(plan: Plan, state: dict | None, allow_change: bool = False):
    """The batches of this process, from where the state says."""
    experiment = plan.experiment
    return experiment.data.batches(
        seed=experiment.seed,
        batch_size=experiment.batch_size,
        rows=meshes.local_rows(plan.mesh, experiment.batch_size),
        state=state,
        allow_change=allow_change,
        overfit_batches=experiment.overfit_batches,
        counted=_first_holder(plan.mesh, experiment.batch_size),
    )


def _first_holder(mesh: jax.sharding.Mesh, batch_size: int) -> np.ndarray:
    """The rows that no process before this one holds: what several hold is counted once."""
    first = np.full(batch_size, jax.process_count())
    for device, index in meshes.batch_sharding(mesh).devices_indices_map((batch_size,)).items():
        first[index] = np.minimum(first[index], device.process_index)
    return np.flatnonzero(first == jax.process_index())
