"""Any cloud that SkyPilot knows, as a managed job."""

from __future__ import annotations

import dataclasses

from vlm_jax.errors import UserError
from vlm_jax.launch.job import MOUNT, Job, bucket_name, check_package, check_workdir, config_note
from vlm_jax.launch.render import Launch, fill, shell_word, shell_words, yaml_string
from vlm_jax.launch.targets.flags import flag
from vlm_jax.launch.targets.tpu_vm import UV

PORT = 8476


@dataclasses.dataclass(frozen=True)
class SkyPilot:
    """SkyPilot: GPUs of any cloud, or one TPU slice; a managed job, moved on when it is preempted."""

    bucket: str = flag("bucket of the workdir (gs://NAME, s3://NAME), mounted at /gcs")
    package: str = flag("what pip installs, pinned")
    infra: str | None = flag("CLOUD[/REGION[/ZONE]]; for TPUs gcp", default=None)
    spot: bool = flag("cheaper machines that may be taken away", default=False)
    max_restarts: int = flag("restarts of a run that fails; preemptions do not count", default=3)

    def render(self, job: Job) -> Launch:
        check_package(self.package)
        check_workdir(job)
        topology = job.topology
        infra = self.infra
        if topology.is_tpu:
            if topology.count > 1:
                raise UserError(
                    f"skypilot makes one slice, and {topology} is {topology.count}; several: gke or queued."
                )
            nodes, accelerators = 1, f"tpu-{topology.accelerator_type}"
            infra = infra or "gcp"
        elif topology.is_gpu:
            nodes, accelerators = topology.count, f"{topology.kind.upper()}:{topology.chips}"
        else:
            raise UserError(f"skypilot rents GPUs and TPUs, and {topology} is neither; this machine: local.")
        resources = [
            *([f"infra: {yaml_string(infra)}"] if infra else []),
            f"accelerators: {accelerators}",
            *(["accelerator_args:", f"  runtime_version: {topology.tpu.runtime}"] if topology.is_tpu else []),
            f"use_spot: {str(self.spot).lower()}",
        ]
        scheme, _, name = self.bucket.rpartition("://")
        task = fill(
            "skypilot.yaml",
            description=job.description,
            name=job.name,
            nodes=nodes,
            resources="\n".join(resources),
            max_restarts=self.max_restarts,
            mount=MOUNT,
            bucket=yaml_string(f"{scheme or 'gs'}://{bucket_name(name)}"),
            uv=UV,
            package=shell_word(self.package),
            arguments=shell_words(job.arguments),
            processes=self.processes(nodes),
        )
        return Launch(
            files={"skypilot.yaml": task},
            commands=(("sky", "jobs", "launch", "--yes", f"{job.folder}/skypilot.yaml"),),
            notes=(
                *config_note(job),
                f"log:    sky jobs logs --name {job.name}",
                f"stop:   sky jobs cancel --name {job.name}",
            ),
            tools=("sky",),
        )

    @staticmethod
    def processes(nodes: int) -> str:
        """One process a node, with all its GPUs: nothing there tells jax otherwise, as srun would."""
        if nodes == 1:
            return ""
        return (
            'first=$(head -n1 <<<"$SKYPILOT_NODE_IPS")\n'
            f'arguments+=("--coordinator=$first:{PORT}" "--num_processes=$SKYPILOT_NUM_NODES" '
            '"--process_id=$SKYPILOT_NODE_RANK")'
        )
