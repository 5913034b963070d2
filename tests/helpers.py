"""What several tests of the trainer share: a recipe small enough to take a step in milliseconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import mesh as meshes
from vlm_jax import program, startup
from vlm_jax.experiment import Experiment, open_experiment
from vlm_jax.overrides import override
from vlm_jax.step import make_train_step

# A handful of weights, a handful of steps.
SMALL = {
    "task.model.image.width": "16",
    "task.model.image.mlp_dim": "32",
    "task.model.image.num_heads": "2",
    "task.model.image.depth": "1",
    "task.model.image.stem_channels": "(4,8,16)",
    "task.model.image.out_dim": "8",
    "task.model.text.width": "16",
    "task.model.text.mlp_dim": "32",
    "task.model.text.depth": "1",
    "task.model.text.out_dim": "8",
    "data.source.size": "200",
    "batch_size": "16",
    "total_examples": "192",
    "optimizer.schedule.warmup_steps": "2",
    "evals.zero_shot_seen.source.size": "24",
    "evals.zero_shot_held_out.source.size": "24",
    "evals.retrieval.source.size": "24",
    "compilation_cache": "None",
}


def small_config(recipe: str = "siglip_tiny", **changes: str):
    """The recipe with `SMALL` and `changes` (dots as `__`) applied."""
    config = configs.load(recipe)
    for key, value in {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        override(config, key, value)
    return config


def small_experiment(folder: Path, recipe: str = "siglip_tiny", **changes: str) -> Experiment:
    return open_experiment(small_config(recipe, **changes), folder / "assets")


def small_flags(**changes: str) -> list[str]:
    """`SMALL` as command line flags."""
    return [f"--config.{k}={v}" for k, v in {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}.items()]


@dataclasses.dataclass
class Stepper:
    """A plan, its jitted update and its batches."""

    plan: startup.Plan
    update: object
    batches: object
    rows: np.ndarray

    @classmethod
    def make(cls, experiment: Experiment, devices) -> Stepper:
        plan = startup.make_plan(experiment, devices)
        options = program.options(experiment)
        update = make_train_step(experiment.task, plan.tx, plan.schedule, plan.mesh, options)
        rows = meshes.local_rows(plan.mesh, experiment.batch_size)
        batches = experiment.data.batches(seed=experiment.seed, batch_size=experiment.batch_size, rows=rows)
        return cls(plan, jax.jit(update, out_shardings=(plan.shardings, None)), batches, rows)

    def batch(self):
        return self.put(next(self.batches))

    def put(self, batch):
        wanted = self.plan.experiment.task.batch_spec(self.plan.experiment.batch_size)
        return meshes.put({k: batch[k] for k in wanted}, self.rows, self.plan.experiment.batch_size, self.plan.mesh)
