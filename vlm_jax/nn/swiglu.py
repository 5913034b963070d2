"""The gated perceptron SwiGLU (Shazeer 2020, arXiv:2002.05202), and the choice between it and the plain one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn import shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear
from vlm_jax.nn.mlp import AXES1, AXES2, Mlp

SWIGLU = "swiglu"


def perceptron(width: int, hidden: int, *, activation: str, **options) -> Mlp | SwiGlu:
    """The perceptron of a block, by the name of its activation."""
    if activation == SWIGLU:
        return SwiGlu(width, hidden, **options)
    return Mlp(width, hidden, activation=activation, **options)


class SwiGlu(nnx.Module):
    """`fc2(silu(gate) up)`, where `[gate | up] = fc1(x)`; `remat` computes the product again in the backward pass."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        bias: bool = True,
        remat: bool = False,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        options = {"bias": bias, "dtype": dtype, "rngs": rngs}
        self.fc1 = linear(width, 2 * hidden, axes=AXES1, groups=2, init=init.fc1, **options)
        self.fc2 = linear(hidden, width, axes=AXES2, init=init.fc2, **options)
        self.remat = remat

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        core = jax.checkpoint(_gated) if self.remat else _gated
        axes = ("batch", None, "mlp")
        return self.fc2(shard.per_shard(core, [axes], axes)(self.fc1(x)))


def _gated(hidden: Float[Array, "batch time two_mlp"]) -> Float[Array, "batch time mlp"]:
    gate, up = jnp.split(hidden, 2, axis=-1)
    return jax.nn.silu(gate) * up
