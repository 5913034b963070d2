"""Workdirs of autoencoders as runs leave them, without a run."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import tree
from vlm_jax.checkpoint import Store


def autoencoder_workdir(folder: Path, recipe: str = "vqvae_tiny:short", seed: int = 0, **bottleneck) -> Path:
    """A very narrow model of a recipe, of random numbers, as a checkpoint of step 3."""
    config = configs.load(recipe)
    model = config.task.model
    for part in (model.encoder, model.decoder):
        part.update(width=16, blocks=1)
    model.bottleneck.update(bottleneck)
    task = configs.build(config.task)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: np.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype)
    variables = jax.tree.map(draw, jax.eval_shape(task.init, jax.random.key(0)))  # compiles nothing
    items = {name: value for name, value in variables.items() if jax.tree.leaves(value)}
    with Store(folder, stacks=task.stacks) as store:
        store.save(3, {**items, "params": tree.unstack(items["params"], task.stacks)}, {"data": None})
    (folder / "config.json").write_text(configs.to_json(config))
    return folder
