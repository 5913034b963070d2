"""Lookup-free quantisation: a code is the signs of its channels, and its entropies keep all codes in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import check_axes, wide
from .latents import check_codes, check_floating, global_mean
from .vq import Quantised, gradient_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

MOST_BITS = 31  # codes are int32


def lfq(z: Float[Array, "*batch bits"]) -> Quantised:
    """Rounds each channel to its sign (MAGVIT-v2, Yu et al. 2023, arXiv:2310.05737).

    Vectors are -1 and +1 (for 0: -1), with a straight-through gradient; the first channel is the lowest bit.

    Raises:
      ValueError: at trace time, for a type that is not floating-point, or more channels than an int32 has bits for.
    """
    z = check_floating("z", z)
    bits = _check_bits(z.shape[-1] if z.ndim else 0)
    signs = jnp.where(z > 0, 1, -1).astype(z.dtype)
    codes = jnp.sum((z > 0) * (1 << jnp.arange(bits)), axis=-1, dtype=jnp.int32)
    return Quantised(codes, gradient_of("straight_through")(z, signs))


def lfq_vectors(codes: Int[Array, "*batch"], bits: int) -> Float[Array, "*batch bits"]:
    """What codes of `lfq` stand for, f32.

    Raises:
      ValueError: for more bits than an int32 has or, outside of `jax.jit`, codes out of range.
    """
    codes = check_codes(codes, 2 ** _check_bits(bits))
    return (codes[..., None] >> jnp.arange(bits) & 1) * 2.0 - 1


def lfq_entropies(
    z: Float[Array, "*batch bits"], *, temperature: float = 0.01, axis_name: str | tuple[str, ...] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean entropy of a token's code, and entropy of the codes of the global batch, in nats.

    The loss is the first minus the second (arXiv:2310.05737): sure of each token, unsure of all. A token
    takes code c with probability softmax_c(-|z - c|^2 / temperature), which is a product over its bits; so its
    entropy is exactly a sum over bits. Of the batch, the sum over bits is that of the nearest distribution that is a
    product, and an upper bound (BSQ, Zhao et al. 2024, arXiv:2406.07548): no array has 2^bits elements.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or a temperature that is not positive.
    """
    z = check_floating("z", z)
    bits = _check_bits(z.shape[-1] if z.ndim else 0)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    logits = (4 / temperature * z.astype(wide(z.dtype))).reshape(-1, bits)  # of +1 against -1
    size = jnp.abs(logits)
    of_tokens = jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)
    axes = check_axes("axis_name", axis_name, z=z)
    average = lambda x: jax.lax.pmean(x.mean(axis=0), axes) if axes else x.mean(axis=0)
    # Both sides are averaged: 1 - p has no digits left where p is near 1.
    of_batch = sum(_minus_x_log_x(average(jax.nn.sigmoid(side))).sum() for side in (logits, -logits))
    return global_mean(of_tokens, axis_name) * bits, of_batch


def _minus_x_log_x(x: jax.Array) -> jax.Array:
    return -x * jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def _check_bits(bits: int) -> int:
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"lfq needs 1 to {MOST_BITS} bits, one for each channel; got {bits}.")
    return bits
