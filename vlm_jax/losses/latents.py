"""What quantisers and the losses of autoencoders accept, and what they share: look-ups and global means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import check_axes, wide

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def check_floating(name: str, x, axes: str | None = None) -> jax.Array:
    """`x` as an array; `axes` names its axes ("tokens dim"), where there may be only so many.

    Raises:
      ValueError: for another number of axes, an empty array, or a type that is not floating-point.
    """
    x = jnp.asarray(x)
    if axes is not None and x.ndim != len(axes.split()):
        raise ValueError(f"{name} must be [{', '.join(axes.split())}]; got {x.shape}.")
    if not x.size:
        raise ValueError(f"{name} must not be empty; got {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be of a floating-point type; got {x.dtype}.")
    return x


def check_same_shape(**arrays: jax.Array) -> None:
    """Raises ValueError, naming the shapes, where the arrays differ in them."""
    if len({x.shape for x in arrays.values()}) > 1:
        shapes = " and ".join(str(x.shape) for x in arrays.values())
        raise ValueError(f"{' and '.join(arrays)} must have the same shape; got {shapes}.")


def check_latents(z, codebook) -> tuple[jax.Array, jax.Array]:
    """Features [tokens, dim] and a codebook [codes, dim] of the same width, or a ValueError."""
    z, codebook = check_floating("z", z, "tokens dim"), check_floating("codebook", codebook, "codes dim")
    if z.shape[1] != codebook.shape[1]:
        raise ValueError(f"z and codebook must have the same dim; got {z.shape} and {codebook.shape}.")
    return z, codebook


def check_codes(codes, size: int) -> jax.Array:
    """Codes as an array of integers; their range is checked where their values are known, outside of `jax.jit`.

    Raises:
      ValueError: for another type, or codes that are not in [0, size).
    """
    codes = jnp.asarray(codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f"codes must be integers; got {codes.dtype}.")
    if codes.size and not isinstance(codes, jax.core.Tracer):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= size:
            raise ValueError(f"codes must be in [0, {size}); got {low if low < 0 else high}.")
    return codes


def check_tile(tile: tuple[int, int]) -> tuple[int, int]:
    """The most tokens and codes of a tile, in the order of `over_tiles`: codes are its rows."""
    if len(tile) != 2 or min(tile) < 1:
        raise ValueError(f"tile must be two positive sizes, of tokens and of codes; got {tile}.")
    return tile[1], tile[0]


def look_up(codebook: Float[Array, "codes dim"], codes: Int[Array, "*batch"]) -> Float[Array, "*batch dim"]:
    """The rows of the codebook; NaN under `jax.jit` for a code that it does not have.

    Raises:
      ValueError: for codes that are not integers or, outside of `jax.jit`, not in [0, codes).
    """
    codebook = check_floating("codebook", codebook, "codes dim")
    codes = check_codes(codes, codebook.shape[0])
    # A negative index would count from the end.
    return jnp.take(codebook, jnp.where(codes < 0, codebook.shape[0], codes), axis=0, mode="fill")


def global_mean(x: jax.Array, axis_name=None, *, over: str = "all") -> jax.Array:
    """Mean over all devices of the elements of `x`; with over="rows" of its rows, each the sum of its elements."""
    axes = check_axes("axis_name", axis_name, x=x)
    total, count = x.sum(dtype=wide(x.dtype)), x.size if over == "all" else x.shape[0]
    return jax.lax.psum(total, axes) / (count * jax.lax.axis_size(axes)) if axes else total / count


def first_row(batch: int, axes: tuple[str, ...]) -> jax.Array | int:
    """Number of this device's first row in the global batch."""
    return jax.lax.axis_index(axes) * batch if axes else 0
