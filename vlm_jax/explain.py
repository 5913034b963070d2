"""`--explain_sharding`: where each parameter of a config lies, on the devices that are here or on a machine by name."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vlm_jax import partition


def explain_sharding(config: Mapping, topology: str | None = None) -> list[str]:
    """A line a parameter, a device's sum, and warnings; `topology` as `--plan` names them (`v5e:16x16`, `cpu:8`).

    Raises:
      UserError: what can be wrong in a config, a topology or a mesh.
    """
    if topology:
        from vlm_jax.plan.compile import ENVIRONMENT

        os.environ |= ENVIRONMENT  # before jax is used
    import jax

    from vlm_jax.plan import topologies
    from vlm_jax.plan.subject import experiment_of

    experiment = experiment_of(config)
    devices = topologies.devices(topologies.parse(topology)) if topology else jax.devices()
    layout, task = experiment.mesh, experiment.task
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    return partition.table(params, layout, layout.make(devices), task.stacks)
