"""Finite scalar quantisation: each channel is rounded to one of a few levels, and the grid of all is the codebook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from .latents import check_codes, check_floating
from .vq import Quantised, gradient_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Float, Int

MARGIN = 1e-3  # keeps the bounds of an odd number of levels from being rounded to one more


def fsq(z: Float[Array, "*batch dim"], levels: Sequence[int]) -> Quantised:
    """Rounds each channel, bounded by a tanh, to as many levels (Mentzer et al. 2023, arXiv:2309.15505).

    Vectors are in [-1, 1], with a straight-through gradient past the rounding; codes count the first channel
    fastest. Nothing is learned and nothing can collapse. 0 is mapped to a level exactly: where the listing of the
    paper shifts an even channel by tan(x), this is by arctanh(x).

    Args:
      z: features, one channel for each of `levels`.
      levels: at least 3 each (for 2, see `lfq`); 8, 6, 5 make 240 codes, 8, 5, 5, 5 make 1000.

    Raises:
      ValueError: at trace time, for another number of channels, or levels that cannot be.
    """
    half_width, basis = _grid(levels)
    z = check_floating("z", z)
    if not z.ndim or z.shape[-1] != len(levels):
        raise ValueError(f"z must have one channel for each of {len(levels)} levels; got {z.shape}.")
    even = np.asarray(levels) % 2 == 0
    half = (np.asarray(levels) - 1) * (1 - MARGIN) / 2
    offset = np.where(even, 0.5, 0.0)
    constants = (jnp.asarray(x, z.dtype) for x in (np.arctanh(offset / half), half, offset))
    shift, half, offset = constants
    bounded = jnp.tanh(z + shift) * half - offset
    rounded = jnp.round(bounded)
    codes = jnp.sum((rounded.astype(jnp.int32) + half_width) * basis, axis=-1, dtype=jnp.int32)
    return Quantised(codes, gradient_of("straight_through")(bounded, rounded) / jnp.asarray(half_width, z.dtype))


def fsq_vectors(codes: Int[Array, "*batch"], levels: Sequence[int]) -> Float[Array, "*batch dim"]:
    """What codes of `fsq` stand for, f32.

    Raises:
      ValueError: for levels that cannot be or, outside of `jax.jit`, codes out of range.
    """
    half_width, basis = _grid(levels)
    codes = check_codes(codes, math.prod(levels))
    digits = codes[..., None] // basis % jnp.asarray(levels)
    return (digits - half_width) / half_width.astype(np.float32)


def _grid(levels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each channel, the level that is 0, and the step of the code from one level to the next."""
    if not levels or min(levels) < 3 or math.prod(levels) > 2**31:
        raise ValueError(f"levels must be at least 3 each, and their product at most 2^31; got {list(levels)}.")
    steps = np.cumprod([1, *levels[:-1]])
    return np.asarray(levels, np.int32) // 2, steps.astype(np.int32)
