"""The two-layer perceptron of a transformer block, and its activations by name."""

from __future__ import annotations

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear


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
        self.fc1 = linear(width, hidden, axes=("embed", "mlp"), init=init.fc1, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, axes=("mlp", "embed"), init=init.fc2, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
