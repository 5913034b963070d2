"""What the two kinds of bare TPU machines share: the script they boot with, and the one that follows them."""

from __future__ import annotations

from vlm_jax.launch.job import MOUNT, Job, bucket_name, check_software, check_workdir
from vlm_jax.launch.render import fill, shell_word, shell_words

UV = "0.13.9"
ATTEMPTS = 20  # of a run that fails, before its machines give up


def startup(job: Job, bucket: str, package: str | None, image: str | None, processes: str) -> str:
    """The script that each machine runs at boot. `processes` is bash that adds the flags of a distributed run."""
    check_software(package, image)
    check_workdir(job)
    if package is not None:
        install, run = fill("startup_package.sh", uv=UV, package=shell_word(package)), fill("run_package.sh")
    else:
        install, run = fill("startup_image.sh", image=shell_word(image)), fill("run_image.sh")
    return fill(
        "startup.sh",
        description=job.description,
        name=job.name,
        bucket=bucket_name(bucket),
        mount=MOUNT,
        arguments=shell_words(job.arguments),
        install=install.rstrip(),
        run=run.rstrip(),
        processes=processes,
        attempts=ATTEMPTS,
    )


def follow(job: Job, bucket: str, project: str, zone: str, verbs: str) -> str:
    """The script that asks for the machines, follows and replaces them; `verbs` are its bash functions."""
    return fill(
        "follow.sh",
        description=job.description,
        name=job.name,
        bucket=bucket_name(bucket),
        where=shell_words((f"--project={project}", f"--zone={zone}")),
        verbs=verbs.rstrip(),
    )
