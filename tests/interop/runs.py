"""A finished run, small enough to be trained in a test, of an architecture that other libraries have."""

from tests.helpers import small_flags
from vlm_jax.main import main

PLAIN = {
    "task__model__image__stem_channels": "()",
    "task__model__image__patch_size": "8",
    "task__model__image__out_dim": "None",
    "task__model__text__out_dim": "16",
    "total_examples": "64",
    "checkpoint_percent": "100",
    "evaluate_percent": "100",
}


def train(workdir, recipe="siglip_tiny:plain", **changes):
    assert main([f"--config={recipe}", f"--workdir={workdir}", *small_flags(**PLAIN | changes)]) == 0
    return workdir
