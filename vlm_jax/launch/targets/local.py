"""Several processes on this machine."""

from __future__ import annotations

import dataclasses
import sys

from vlm_jax.errors import UserError
from vlm_jax.launch.job import Job
from vlm_jax.launch.render import Launch
from vlm_jax.launch.targets.flags import flag


@dataclasses.dataclass(frozen=True)
class Local:
    """This machine: cpu:N is N processes of one CPU device each, h100:8 eight of one GPU each."""

    python: str = flag("interpreter (default: this one)", default=sys.executable)

    def render(self, job: Job) -> Launch:
        topology = job.topology
        if topology.is_tpu or topology.count > 1:
            raise UserError(f"{topology} is not this machine; write cpu:N or, for its GPUs, KIND:N.")
        count = topology.devices
        device = "--gpus" if topology.is_gpu else "--cpu"
        command = (
            *(self.python, "-m", "vlm_jax.launch.spawn", f"--count={count}", device, f"--logs={job.folder}"),
            *("--", self.python, "-m", "vlm_jax.main", *job.arguments),
        )
        return Launch(
            files={},
            commands=(command,),
            notes=(
                f"{count} processes, each with --coordinator=127.0.0.1:PORT --num_processes={count} --process_id=I;",
                f"the first writes here, the others to {job.folder}/process-I.log",
            ),
        )
