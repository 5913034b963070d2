"""The layers that Flax has, with the dtype policy of this package: f32 parameters, computation in `dtype`."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer


def layer_norm(width: int, *, epsilon: float, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with statistics in f32, whatever the compute dtype; the result is in `dtype`."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.dtype(dtype), rngs=rngs)


def linear(width: int, out_dim: int, *, bias: bool = True, init: Initializer, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    """`x kernel + bias`."""
    return nnx.Linear(width, out_dim, use_bias=bias, kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)
