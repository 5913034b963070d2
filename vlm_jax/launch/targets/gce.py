"""TPUs as machines of Compute Engine: a managed instance group is a slice."""

from __future__ import annotations

import dataclasses

from vlm_jax.errors import UserError
from vlm_jax.launch.job import Job, config_note
from vlm_jax.launch.render import Launch, fill, shell_word
from vlm_jax.launch.targets import tpu_vm
from vlm_jax.launch.targets.flags import flag, need_tpu
from vlm_jax.launch.topology import TPUS

PORT = 8476
MAKE_POLICY = """\
gcloud compute resource-policies create workload-policy "$name" "${{where[0]}}" --region="$region" \\
  --type=HIGH_THROUGHPUT --accelerator-topology={topology} || return"""
DELETE_POLICY = 'gcloud compute resource-policies delete "$name" "${where[0]}" --region="$region" --quiet'
# Other machines are repaired by Compute Engine, all of a slice together; spot ones are not.
LOST = 'if [[ $was == running ]] && grep -qvx RUNNING <<<"${machines:-none}"; then echo lost && return; fi'


@dataclasses.dataclass(frozen=True)
class ComputeEngine:
    """TPUs in Compute Engine (v5p, v6e): an instance template, a workload policy, a managed instance group."""

    project: str = flag("Google Cloud project")
    zone: str = flag("zone, as in us-east5-b")
    bucket: str = flag("bucket of the workdir, mounted at /gcs")
    package: str | None = flag("what pip installs, pinned", default=None)
    image: str | None = flag("container image with vlm_jax, instead", default=None)
    spot: bool = flag("cheaper machines that may be taken away", default=False)

    def render(self, job: Job) -> Launch:
        need_tpu("gce", job)
        topology = job.topology
        if topology.tpu.image is None:
            there = " and ".join(kind for kind, tpu in TPUS.items() if tpu.image)
            raise UserError(f"Compute Engine has TPUs {there}, not {topology.kind}; take gke or queued.")
        if topology.count > 1:
            raise UserError(f"gce makes one slice, and {topology} is {topology.count}; several: gke or queued.")
        options = [
            f"--machine-type={topology.machine_type}",
            f"--image-family={topology.tpu.image}",
            "--image-project=ubuntu-os-accelerator-images",
            "--boot-disk-size=100GB",
            "--maintenance-policy=TERMINATE",
            "--scopes=cloud-platform",
            *(["--provisioning-model=SPOT", "--instance-termination-action=STOP"] if self.spot else []),
        ]
        group = ['--template="$name"', f"--size={topology.hosts}", "--default-action-on-vm-failure=do-nothing"]
        region = self.zone.rpartition("-")[0]
        wired = topology.hosts > 1  # several machines are one slice by a workload policy
        if wired:
            policy = f"projects/{self.project}/regions/{region}/resourcePolicies/{job.name}"
            group.append(f"--workload-policy={shell_word(policy)}")
        verbs = fill(
            "follow_gce.sh",
            region=f"readonly region={shell_word(region)}\n" if wired else "",
            make_policy=MAKE_POLICY.format(topology=topology.shape_name) if wired else "",
            delete_policy=DELETE_POLICY if wired else "",
            template=" \\\n    ".join(map(shell_word, options)),
            group=" \\\n    ".join(group),
            hosts=topology.hosts,
            lost=LOST if self.spot else "",
        )
        where = f"--project={self.project} --zone={self.zone}"
        return Launch(
            files={
                "startup.sh": tpu_vm.startup(job, self.bucket, self.package, self.image, self.processes(job)),
                "follow.sh": tpu_vm.follow(job, self.bucket, self.project, self.zone, verbs),
            },
            commands=(("bash", f"{job.folder}/follow.sh"),),
            notes=(
                *config_note(job),
                f"list:   gcloud compute instance-groups managed list-instances {job.name} {where}",
                f"log:    gcloud compute ssh MACHINE {where} --command='sudo journalctl -fu google-startup-scripts'",
                f"stop:   gcloud compute instance-groups managed delete {job.name} {where} --quiet",
                f"follow: bash {job.folder}/follow.sh (again, if it was interrupted)",
            ),
            tools=("gcloud",),
        )

    @staticmethod
    def processes(job: Job) -> str:
        """jax looks for `agent-worker-number`, which only the Cloud TPU API sets; here it is told."""
        hosts = job.topology.hosts
        if hosts == 1:
            return ""
        return (
            "first=$(metadata worker-network-endpoints | cut -d, -f1)\n"
            f'arguments+=("--coordinator=${{first##*:}}:{PORT}" --num_processes={hosts} "--process_id=$worker")'
        )
