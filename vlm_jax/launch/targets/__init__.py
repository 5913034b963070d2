"""Places to run, one a file: a frozen dataclass whose fields are its flags, and `render(job) -> Launch`."""

from vlm_jax.launch.targets.gce import ComputeEngine
from vlm_jax.launch.targets.gke import Gke
from vlm_jax.launch.targets.local import Local
from vlm_jax.launch.targets.queued import QueuedResources
from vlm_jax.launch.targets.skypilot import SkyPilot
from vlm_jax.launch.targets.slurm import Slurm

TARGETS = {
    "gke": Gke,
    "gce": ComputeEngine,
    "queued": QueuedResources,
    "slurm": Slurm,
    "skypilot": SkyPilot,
    "local": Local,
}
