"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "batch time heads head_dim"],
    positions: Int[Array, "batch time"],
    *,
    theta: float = 10_000.0,
    fraction: float = 1.0,
) -> Float[Array, "batch time heads head_dim"]:
    """Each pair of features turned by `position * theta ** (-2 i / d)`, computed in f32.

    Feature i of the first half pairs with feature i of the second (GPT-NeoX's order, and so LLaMA's published weights).

    Args:
      theta: the base of the wavelengths.
      fraction: of the features of a head that turn, the first ones; the others stay as they are.
    """
    turned = int(x.shape[-1] * fraction)
    frequency = theta ** -(jnp.arange(0, turned, 2, dtype=jnp.float32) / turned)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return out if turned == x.shape[-1] else jnp.concatenate([out, x[..., turned:]], axis=-1)
