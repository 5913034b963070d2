"""Activations of perceptrons, by name."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x sigmoid(1.702 x)`: what OpenAI's CLIP weights were trained with; they lose accuracy with any other GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x Phi(x)` by the error function, computed in f32; of its complement, jax.nn's, a TPU's kernels have none.

    One array is kept for the backward pass, in the dtype of `x`.
    """
    wide, below = _normal(x)
    return (wide * below).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    wide, below = _normal(primals[0])
    slope = below + wide * jnp.exp(-0.5 * wide * wide) * (2 * math.pi) ** -0.5
    return gelu(primals[0]), slope.astype(primals[0].dtype) * tangents[0]


def _normal(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`x`, and how much of the standard normal distribution lies below it, both in f32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide, 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))


def squared_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(x, 0)^2` (Primer: So et al. 2021, arXiv:2109.08668); Persimmon's, and so Fuyu's."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "squared_relu": squared_relu,
}
