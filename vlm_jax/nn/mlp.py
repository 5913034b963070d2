"""The two-layer perceptron of a transformer block, and its activations by name."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn.initializers import Initializers


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x sigmoid(1.702 x)`: what OpenAI's CLIP weights were trained with; they lose accuracy with any other GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


class Mlp(nnx.Module):
    """`fc2(activation(fc1(x)))`."""

    def __init__(self, width: int, hidden: int, *, activation: str, dtype: str, init: Initializers, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, dtype=jnp.dtype(dtype), rngs=rngs)
        self.fc1 = linear(width, hidden, kernel_init=init.fc1)
        self.fc2 = linear(hidden, width, kernel_init=init.fc2)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
