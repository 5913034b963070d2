"""A JobSet on Google Kubernetes Engine."""

from __future__ import annotations

import dataclasses

from vlm_jax.errors import UserError
from vlm_jax.launch.job import MOUNT, Job, bucket_name, check_workdir, config_note
from vlm_jax.launch.render import Launch, fill, kubernetes_arguments, yaml_string
from vlm_jax.launch.targets.flags import flag, need_tpu


@dataclasses.dataclass(frozen=True)
class Gke:
    """GKE JobSet (recommended): any number of slices, queued by Kueue, restarted by Kubernetes."""

    image: str = flag("container image with vlm_jax (launch/Dockerfile.tpu)")
    bucket: str = flag("bucket of the workdir, mounted at /gcs")
    queue: str | None = flag("Kueue's local queue", default=None)
    namespace: str = flag("namespace", default="default")
    service_account: str = flag("Kubernetes service account that may write the bucket", default="default")
    spot: bool = flag("nodes of a spot pool", default=False)
    max_restarts: int = flag("restarts of a run that fails; preemptions do not count", default=10)
    grace: int = flag("seconds a run has to save when it is told to stop", default=300)

    def render(self, job: Job) -> Launch:
        need_tpu("gke", job)
        check_workdir(job)
        if self.max_restarts < 0 or self.grace < 1:
            raise UserError("--max_restarts is at least 0, --grace at least 1.")
        topology = job.topology
        manifest = fill(
            "jobset.yaml",
            description=job.description,
            name=job.name,
            namespace=yaml_string(self.namespace),
            labels=f"labels:\n  kueue.x-k8s.io/queue-name: {yaml_string(self.queue)}" if self.queue else "",
            max_restarts=self.max_restarts,
            slices=topology.count,
            hosts=topology.hosts,
            service_account=yaml_string(self.service_account),
            grace=self.grace,
            accelerator=topology.tpu.label,
            topology=topology.shape_name,
            spot='cloud.google.com/gke-spot: "true"' if self.spot else "",
            image=yaml_string(self.image),
            arguments=kubernetes_arguments(job.arguments),
            chips=topology.chips_per_host,
            mount=MOUNT,
            bucket=yaml_string(bucket_name(self.bucket)),
        )
        where = f"--namespace={self.namespace}"
        path = f"{job.folder}/jobset.yaml"
        pools = "1 node pool" if topology.count == 1 else f"{topology.count} node pools"
        return Launch(
            files={"jobset.yaml": manifest},
            commands=(("kubectl", "apply", "-f", path),),
            notes=(
                *config_note(job),
                f"needs:  {pools} of {topology.hosts} {topology.machine_type}, --tpu-topology={topology.shape_name}",
                f"log:    kubectl logs {where} -f -l jobset.sigs.k8s.io/jobset-name={job.name},"
                "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0 -c main",
                f"stop:   kubectl delete {where} jobset {job.name}",
            ),
            tools=("kubectl",),
        )
