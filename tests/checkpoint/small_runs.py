"""Small runs to save: parameters, optimizer state and moving average, scanned or unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax import tree

STACKS = {"image/blocks": 3}
META = {
    "config": {"name": "test", "rate": 1e-3, "none": None},
    "data": {"next_index": 96, "seed": 7},
    "preprocessing": {"size": 32},
}


def make_items(seed: int = 0) -> dict:
    """Items as a trainer has them, layers stacked."""
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    params = {
        "image": {
            "embed": {"posemb": jax.random.normal(next(keys), (16, 32))},
            "blocks": {
                "mlp": {
                    "kernel": jax.random.normal(next(keys), (3, 32, 64)),
                    "bias": jax.random.normal(next(keys), (3, 64), jnp.bfloat16),
                }
            },
        },
        "logit_scale": jnp.float32(seed),
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype="bfloat16")).init(params)
    opt = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape, x.dtype) if x.ndim else x + seed, opt)
    ema = jax.tree.map(lambda x: x * 0.5, params)
    return {"params": params, "state": {}, "opt": opt, "ema": ema}


def unrolled(items: dict) -> dict:
    """The same with every layer a leaf, structure of the optimizer's state kept."""
    params = tree.unstack(items["params"], STACKS)
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype="bfloat16")).init(params)
    opt = tree.like(opt, tree.flatten(tree.unstack(items["opt"], STACKS)))
    return {"params": params, "state": {}, "opt": opt, "ema": tree.unstack(items["ema"], STACKS)}


def shapes(items: dict, place=lambda leaf: leaf.sharding) -> dict:
    """Abstract items, placed by `place(leaf)`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), items)


def over(**axes: int):
    """Places the largest dimension that divides over all axes of a mesh of so many devices, and the rest nowhere."""
    size = int(np.prod(list(axes.values())))
    devices = np.array(jax.devices()[:size]).reshape(*axes.values())
    mesh = Mesh(devices, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))

    def place(leaf) -> NamedSharding:
        fits = [i for i, n in enumerate(leaf.shape) if n % size == 0]
        chosen = max(fits, key=lambda i: leaf.shape[i], default=None)
        return NamedSharding(mesh, PartitionSpec(*[tuple(axes) if i == chosen else None for i in range(leaf.ndim)]))

    return place


def put(items: dict, place) -> dict:
    return jax.tree.map(lambda x: jax.device_put(x, place(x)), items)


def bits(leaf) -> bytes:
    return np.asarray(leaf).tobytes()


def assert_identical(got: dict, wanted: dict) -> None:
    """The same structure, dtypes, shapes and bits; empty items are left out."""
    wanted = {name: item for name, item in wanted.items() if jax.tree.leaves(item)}
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (name, a), (_, b) in zip(tree.flatten(got).items(), tree.flatten(wanted).items()):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert bits(a) == bits(b), name
