"""From one process to its place among many."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm_jax.processes.alone import Alone
from vlm_jax.processes.detect import Job
from vlm_jax.processes.hub import Hub
from vlm_jax.processes.link import Link

# Seconds after which jax ends a process that no longer hears of another; lines notice a lost host after 90.
LOST = 150


def join(job: Job | None, same: Sequence[str], timeout: float) -> Alone | Link:
    """Waits for the other processes of a job, where there are any, and starts `jax.distributed` with them.

    Args:
      job: None for a process by itself.
      same: lines that must be those of process 0, such as the config's.
      timeout: seconds to wait for all processes.

    Raises:
      UserError: some process is missing, is there twice, or was started differently; or the port is taken.
    """
    if job is None or job.count == 1:
        return Alone()
    # jax ends the process with a stack trace, or a segmentation fault, where another one is missing, wrong or late:
    # so all are there before it begins.
    hub = Hub(job.coordinator, job.count, same, timeout) if job.index == 0 else None
    link = Link(job.coordinator, job.index, job.count, same, timeout, hub)
    _initialize(job, timeout)
    link.say(f"{job.count} processes ({job.launcher}), the first at {job.coordinator}")
    return link


def _initialize(job: Job, timeout: float) -> None:
    import jax

    # It takes SIGTERM for itself, and a process could then no longer be ended by it outside the loop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        job.coordinator,
        job.count,
        job.index,
        local_device_ids=None if job.local_devices is None else list(job.local_devices),
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(timeout),
        # A process that is gone is noticed by its line first, and ends the others with a line instead of a stack trace.
        heartbeat_timeout_seconds=LOST,
        shutdown_timeout_seconds=math.ceil(timeout),
    )
