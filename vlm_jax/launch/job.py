"""What is to run: arguments of `vlm_jax.main`, checked before anything is started, on which hardware."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from vlm_jax import main
from vlm_jax.errors import UserError, closest
from vlm_jax.launch.topology import Topology

MOUNT = "/gcs"  # where every cloud target mounts the bucket


@dataclasses.dataclass(frozen=True)
class Job:
    """A run and its hardware.

    Attributes:
      arguments: words of the command line of `vlm_jax.main`.
      workdir: as given; None where it was not.
      config: `NAME|PATH|WORKDIR[:VARIANT]`.
    """

    name: str
    topology: Topology
    arguments: tuple[str, ...]
    config: str
    workdir: str | None

    @property
    def folder(self) -> Path:
        """Where the rendered files go: always beneath the current folder, since workdirs may be elsewhere."""
        return Path("launches") / self.name

    @property
    def description(self) -> str:
        """The first line of every rendered file."""
        return f"{self.name} on {self.topology}, rendered by python -m vlm_jax.launch."


def make(name: str | None, topology: str, words: list[str], own_flags: list[str]) -> Job:
    """The job that `words`, arguments of `vlm_jax.main`, describe.

    Raises:
      UserError: an unknown flag, key or value; sizes that do not fit the topology; a name that clouds do not take.
    """
    rest, overrides = main.split_overrides(words)
    known = main.parser()
    flags, unknown = known.parse_known_args(rest)
    if unknown:
        names = [*own_flags, *(o for action in known._actions for o in action.option_strings)]
        raise UserError(f"unknown argument {unknown[0]!r}; {closest(unknown[0].split('=')[0], names)}")
    main.arguments(words)
    from vlm_jax import config as configs

    config = configs.fill(main.resolved_config(flags, overrides))
    hardware = Topology.parse(topology)
    check_fit(config, hardware)
    recipe, variant = configs.split_spec(flags.config)
    name = name or re.sub(r"[^a-z0-9]+", "-", "-".join(filter(None, (Path(recipe).stem, variant))).lower()).strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise UserError(f"--name={name}: clouds take at most 40 of a-z, 0-9 and -, beginning with a letter.")
    return Job(name, hardware, tuple(words), flags.config, flags.workdir)


def check_fit(config, topology: Topology) -> None:
    """What the run would say on the machines, said before they cost anything. A CPU says it at no cost itself."""
    from vlm_jax import config as configs

    mesh, batch_size = config["mesh"], config["batch_size"]
    if topology.kind == "cpu":
        return
    sizes = configs.build(mesh).sizes(topology.devices, f"of {topology}")
    ways = sizes["data"] * sizes["fsdp"]
    if batch_size % ways:
        raise UserError(
            f"batch_size={batch_size} is not divisible by the {ways} devices of {topology} that it is split over."
        )


def bucket_name(bucket: str) -> str:
    """The bare name of a bucket that may be given as `gs://NAME`."""
    name = bucket.removeprefix("gs://").rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", name):
        raise UserError(f"--bucket={bucket}: name a bucket, as in gs://my-bucket, without a folder in it.")
    return name


def check_workdir(job: Job) -> None:
    """A run that outlives its machines keeps its workdir in the bucket."""
    if not (job.workdir and re.match(rf"{MOUNT}/[^/]", job.workdir)):
        given = f"--workdir={job.workdir} is lost with the machine" if job.workdir else "--workdir is missing"
        raise UserError(f"{given}; the bucket is mounted at {MOUNT}: --workdir={MOUNT}/workdirs/{job.name}.")


def check_package(package: str) -> None:
    """Something pip installs that is the same tomorrow: machines that come back install it again."""
    pinned = r"==[\w.+!]+$|\.whl(\[[\w,-]+\])?$|\.tar\.gz$|git\+\S+/[^/@\s]+@[\w.+-]+$"
    if not re.search(pinned, package):
        raise UserError(
            f"--package={package} is not pinned; give a wheel, NAME[tpu]==VERSION, or "
            "'vlm_jax[tpu] @ git+https://HOST/PATH@TAG'."
        )


def check_software(package: str | None, image: str | None) -> None:
    if (package is None) == (image is None):
        raise UserError("give one of --package=SPEC (what pip installs) and --image=IMAGE (a container with vlm_jax).")
    if package is not None:
        check_package(package)


def config_note(job: Job) -> tuple[str, ...]:
    """A config of this machine must be on the others too."""
    if Path(job.config).exists() or job.config.partition(":")[0].endswith(".py"):
        return (f"note: the machines read {job.config} themselves; it must be there under this path.",)
    return ()
