"""Which processes a run consists of: as the flags say, or as the environment does that started them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from vlm_jax.errors import UserError

FLAGS = ("coordinator", "num_processes", "process_id")
# Launchers that say how many processes there are but not where the first one is.
COUNTS = {
    "OMPI_COMM_WORLD_SIZE": ("Open MPI", "OMPI_COMM_WORLD_RANK"),
    "PMI_SIZE": ("MPI", "PMI_RANK"),
}
NAMES = {
    "OmpiCluster": "Open MPI",
    "SlurmCluster": "Slurm",
    "GkeTpuCluster": "TPU on GKE",
    "GceTpuCluster": "TPU VM",
    "K8sCluster": "Kubernetes",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of a run, and which of them this one is.

    Attributes:
      launcher: who started them, for a reader.
      coordinator: HOST:PORT, where process 0 listens.
      count: processes. index: of this one.
      local_devices: the accelerators of this host that are this process's; None leaves it to jax, () are all.
    """

    launcher: str
    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = ()


def asked_for(flags: argparse.Namespace) -> Job | None:
    """What `--coordinator`, `--num_processes` and `--process_id` say; None where none is given.

    `--num_processes=1` alone is a job of one process, whatever the environment says.

    Raises:
      UserError: some are missing, or do not fit together.
    """
    given = {name: getattr(flags, name) for name in FLAGS}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if flags.process_timeout < 1:
        raise UserError(f"--process_timeout={flags.process_timeout} must be at least 1 (second).")
    if len(missing) == len(FLAGS):
        return None
    if given["num_processes"] == 1 and len(missing) == 2:
        return Job("flags", "", 1, 0)
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing; a process needs --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I, or none of the three."
        )
    host, _, port = given["coordinator"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={given['coordinator']}: give HOST:PORT, where process 0 is to listen.")
    count, index = given["num_processes"], given["process_id"]
    if not 0 <= index < count:
        raise UserError(f"--process_id={index} is not one of 0 to N-1 with --num_processes={count}.")
    return Job("flags", given["coordinator"], count, index, _from_environment(()))


def detect(timeout: float) -> Job | None:
    """The job that the environment describes, as jax recognises it; None for a process by itself.

    Nothing is waited for but the answers of a TPU VM's metadata server, of the Kubernetes API in an indexed Job, and of
    the DNS for process 0's name.

    Args:
      timeout: seconds that process 0's name may take to appear.

    Raises:
      UserError: there are several processes, and no way to tell where the first one is.
    """
    from jax._src.clusters import ClusterEnv  # jax offers no other way to ask before it connects

    for kind in ClusterEnv._cluster_types:
        # Only an indexed Job knows who is who; elsewhere jax would ask an API that a pod need not be allowed to use.
        unindexed = kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ
        if kind.opt_in_only_method or unindexed:
            continue
        name = NAMES.get(kind.__name__, kind.__name__)
        try:
            if kind.is_env_present():
                return _job(kind, name, timeout)
        except Exception as error:  # whatever a launcher's variables or a metadata server make of it
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} was found, but its processes were not ({type(error).__name__}: {reason}); give --coordinator, "
                "--num_processes and --process_id, or --num_processes=1 to run by itself."
            ) from error
    for variable, (name, rank) in COUNTS.items():
        if os.environ.get(variable, "1") != "1":
            raise UserError(
                f"{name} started {os.environ[variable]} processes and does not say where the first one is; give "
                f"--coordinator=HOST:PORT --num_processes=${variable} --process_id=${rank}."
            )
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        print(f"a Slurm job of {os.environ['SLURM_NTASKS']} tasks, but not under srun: one process", file=sys.stderr)
    return None


def _job(kind, name: str, timeout: float) -> Job | None:
    count = kind.get_process_count()
    if count == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS") or kind.get_coordinator_address(timeout, port)
    return Job(name, coordinator, count, kind.get_process_id(), _from_environment(_local_devices(kind, count)))


def _local_devices(kind, count: int) -> tuple[int, ...]:
    """One GPU a process, as jax has it, but all where a process is alone on its host or sees one only."""
    local = kind.get_local_process_id()  # None on TPUs
    alone = os.environ.get("SLURM_STEP_NUM_NODES") == str(count) or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    bound = len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    return () if local is None or alone or bound else (local,)


def _from_environment(devices: tuple[int, ...]) -> tuple[int, ...] | None:
    return None if os.environ.get("JAX_LOCAL_DEVICE_IDS") else devices
