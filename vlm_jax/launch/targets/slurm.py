"""GPU nodes of a SLURM cluster."""

from __future__ import annotations

import dataclasses
import sys

from vlm_jax.errors import UserError
from vlm_jax.launch.job import Job
from vlm_jax.launch.render import Launch, fill, shell_word, shell_words
from vlm_jax.launch.targets.flags import flag


@dataclasses.dataclass(frozen=True)
class Slurm:
    """SLURM: GPU nodes of a cluster with a shared file system, one process a GPU."""

    sbatch: tuple[str, ...] = flag("a further option of sbatch, as in --sbatch=--partition=gpu; repeatable", default=())
    python: str = flag("interpreter on the nodes (default: this one)", default=sys.executable)
    grace: int = flag("seconds before the time limit at which the run saves and queues again", default=300)

    def render(self, job: Job) -> Launch:
        topology = job.topology
        if not topology.is_gpu:
            raise UserError(f"slurm runs GPU nodes, and {topology} is none; write NODES*KIND:GPUS, as in 4*h100:8.")
        wrong = [o for o in self.sbatch if not o.startswith("--") or not o.isprintable()]
        if wrong or self.grace < 1:
            raise UserError("--sbatch takes one option of sbatch, as in --sbatch=--time=24:00:00; --grace is positive.")
        options = [
            f"--job-name={job.name}",
            f"--output={job.folder}/%j.log",
            f"--nodes={topology.count}",
            f"--ntasks-per-node={topology.chips}",
            f"--gpus-per-node={topology.chips}",
            *self.sbatch,
        ]
        script = fill(
            "slurm.sh",
            description=job.description,
            options="\n".join(f"#SBATCH {option}" for option in options),
            grace=self.grace,
            python=shell_word(self.python),
            arguments=shell_words(job.arguments),
        )
        path = f"{job.folder}/slurm.sh"
        return Launch(
            files={"slurm.sh": script},
            commands=(("sbatch", path),),
            notes=(f"log:    tail -F {job.folder}/*.log", f"stop:   scancel --name={job.name}"),
            tools=("sbatch",),
        )
