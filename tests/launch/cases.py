"""Command lines that several tests render."""

from __future__ import annotations

from vlm_jax.launch import command
from vlm_jax.launch.render import Launch

RUN = ["--config=siglip_b16:full", "--config.tokenizer=tokenizer model.model"]
CLOUD = [*RUN, "--workdir=/gcs/workdirs/b16"]
GOOGLE = ["--project=my-project", "--bucket=gs://my-bucket"]
WHEEL = "--package=/gcs/wheels/vlm_jax-0.1.0-py3-none-any.whl[tpu]"
GIT = "--package=vlm_jax[cuda] @ git+https://example.com/me/vlm_jax@v0.1.0"
IMAGE = "--image=us-docker.pkg.dev/my-project/images/vlm_jax:1"

CASES = {
    "gke": ["gke", "--topology=v6e:16x16", IMAGE, "--bucket=my-bucket", *CLOUD],
    "gke_multislice": [
        *["gke", "--topology=2*v5e:4x4", IMAGE, "--bucket=my-bucket", "--queue=tpus", "--namespace=research", "--spot"],
        *["--service_account=trainer", "--name=b16-two", *CLOUD],
    ],
    "gce": ["gce", "--topology=v6e:4x4", "--zone=us-east5-b", WHEEL, *GOOGLE, *CLOUD],
    "gce_spot": ["gce", "--topology=v5p:2x2x1", "--zone=us-east5-a", IMAGE, "--spot", *GOOGLE, *CLOUD],
    "queued": ["queued", "--topology=v5e:4x4", "--zone=us-west4-a", WHEEL, "--spot", *GOOGLE, *CLOUD],
    "queued_multislice": ["queued", "--topology=2*v4:2x2x4", "--zone=us-central2-b", IMAGE, *GOOGLE, *CLOUD],
    "slurm": [
        *["slurm", "--topology=4*h100:8", "--python=/shared/venv/bin/python", "--sbatch=--partition=gpu"],
        *["--sbatch=--time=24:00:00", *RUN, "--workdir=/shared/workdirs/b16"],
    ],
    "skypilot_gpu": ["skypilot", "--topology=2*h100:8", GIT, "--bucket=s3://my-bucket", "--spot", *CLOUD],
    "skypilot_tpu": ["skypilot", "--topology=v5e:2x4", WHEEL, "--bucket=my-bucket", *CLOUD],
    "local": ["local", "--topology=cpu:2", "--python=python", "--config=siglip_tiny:short"],
    "local_gpu": ["local", "--topology=h100:8", "--python=python", *RUN],
}
# The cases that make bash, by the names of their scripts.
SCRIPTS = [
    (name, script)
    for name in ("gce", "gce_spot", "queued", "queued_multislice")
    for script in ("startup.sh", "follow.sh")
]
SCRIPTS.append(("slurm", "slurm.sh"))


def rendered(argv: list[str]) -> Launch:
    """What a command line makes, unstarted."""
    _, target, job = command.parse(argv)
    return target.render(job)
