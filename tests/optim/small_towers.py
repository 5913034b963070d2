"""A small two-tower tree, with its layers stacked and unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm_jax import tree
from vlm_jax.optim import Optimizer, merge
from vlm_jax.units import Clock

STACKS = {"image/blocks": 3, "text/blocks": 2}
CLOCK = Clock(batch_size=8, epoch=80, total=10)


def make_params(seed: int = 0) -> dict:
    """Live parameters, layers stacked as STACKS says; of few shapes, so that little is compiled."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    def tower(depth, **embed):
        return {
            "embed": embed,
            "blocks": {"mlp": {"kernel": normal(depth, 40, 48), "bias": normal(depth, 40)}},
            "ln_post": {"scale": normal(40)},
            "head": {"kernel": normal(40, 8)},
        }

    return {
        "image": tower(3, patch={"kernel": normal(40, 48)}, posemb=normal(40, 48)),
        "text": tower(2, token=normal(40, 48), posemb=normal(40, 48)),
        "logit_scale": jnp.float32(1.0),
    }


def gradients(params: dict, step: int) -> dict:
    return jax.tree.map(lambda p: jnp.sin(3.0 * p + step), params)


def train(optimizer: Optimizer, params: dict, stacks: dict, steps: int = 4) -> dict[str, np.ndarray]:
    """Per-layer parameters after updates whose gradients change from step to step and from leaf to leaf."""
    trained, frozen = optimizer.split(params, stacks)
    tx, _ = optimizer.make(params, CLOCK, stacks)
    state = tx.init(trained)
    for step in range(steps):
        updates, state = tx.update(gradients(trained, step), state, trained)
        trained = optax.apply_updates(trained, updates)
    return tree.flatten(tree.unstack(merge(trained, frozen), stacks))
