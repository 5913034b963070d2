"""TPU VMs of the Cloud TPU API, as queued resources."""

from __future__ import annotations

import dataclasses

from vlm_jax.launch.job import Job, config_note
from vlm_jax.launch.render import Launch, fill, shell_word
from vlm_jax.launch.targets import tpu_vm
from vlm_jax.launch.targets.flags import flag, need_tpu


@dataclasses.dataclass(frozen=True)
class QueuedResources:
    """Cloud TPU queued resources (v4, v5e, v5p, v6e): TPU VMs that are asked for until they are there."""

    project: str = flag("Google Cloud project")
    zone: str = flag("zone, as in us-central2-b")
    bucket: str = flag("bucket of the workdir, mounted at /gcs")
    package: str | None = flag("what pip installs, pinned", default=None)
    image: str | None = flag("container image with vlm_jax, instead", default=None)
    spot: bool = flag("cheaper machines that may be taken away", default=False)

    def render(self, job: Job) -> Launch:
        need_tpu("queued", job)
        topology = job.topology
        if topology.count > 1:
            nodes = (f"--node-count={topology.count}", f"--node-prefix={job.name}")
        else:
            nodes = (f"--node-id={job.name}",)
        create = [
            *nodes,
            f"--accelerator-type={topology.accelerator_type}",
            f"--runtime-version={topology.tpu.runtime}",
            *(["--spot"] if self.spot else []),
        ]
        verbs = fill("follow_queued.sh", create=" \\\n    ".join(map(shell_word, create)))
        node = f"{job.name}-0" if topology.count > 1 else job.name
        where = f"--project={self.project} --zone={self.zone}"
        return Launch(
            files={
                # jax and libtpu learn from the metadata of these machines which process is which.
                "startup.sh": tpu_vm.startup(job, self.bucket, self.package, self.image, processes=""),
                "follow.sh": tpu_vm.follow(job, self.bucket, self.project, self.zone, verbs),
            },
            commands=(("bash", f"{job.folder}/follow.sh"),),
            notes=(
                *config_note(job),
                f"log:    gcloud compute tpus tpu-vm ssh {node} {where} --worker=0 "
                "--command='sudo journalctl -fu google-startup-scripts'",
                f"stop:   gcloud compute tpus queued-resources delete {job.name} {where} --force --quiet",
                f"follow: bash {job.folder}/follow.sh (again, if it was interrupted)",
            ),
            tools=("gcloud",),
        )
