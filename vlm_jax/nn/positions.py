"""Position embeddings of patches: fixed sines and cosines, and learned ones carried over to another grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.errors import UserError


def sincos2d(height: int, width: int, dim: int, *, temperature: float = 10_000.0) -> Float[np.ndarray, "grid dim"]:
    """Fixed 2-D positions, row by row: a quarter of `dim` each for the sine and cosine of x, then of y.

    As in MoCo v3 (Chen et al. 2021, section 5), so that weights trained with it can be used.

    Raises:
      UserError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise UserError(f"posemb='sincos2d' needs a width divisible by 4, not {dim}.")
    frequency = temperature ** -(np.arange(dim // 4) / max(dim // 4 - 1, 1))
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * frequency
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1).astype(np.float32)


def resample(
    posemb: Float[Array, "old dim"],
    grid: tuple[int, int],
    *,
    prefix: int = 0,
    method: str = "bilinear",
    old_grid: tuple[int, int] | None = None,
) -> Float[Array, "new dim"]:
    """Learned positions for another grid of patches, by antialiased interpolation over the old one.

    Weights trained at one image size then serve at another (Dosovitskiy et al. 2021, section 3.2). Pure, in f32:
    usable on weights as they are loaded as well as inside a model.

    Args:
      posemb: positions in row-major order, after `prefix` ones that belong to no patch (CLS) and stay as they are.
      grid: rows and columns of the new grid.
      method: "bilinear" (big_vision) or "bicubic" (open_clip, timm), as `jax.image.resize` names them.
      old_grid: rows and columns of the old grid; a square if not given.

    Raises:
      UserError: the old positions do not form the old grid.
    """
    tokens = posemb.shape[0] - prefix
    old_grid = old_grid or (round(tokens**0.5),) * 2
    if old_grid[0] * old_grid[1] != tokens:
        raise UserError(f"{tokens} learned positions do not form a grid of {old_grid[0]} x {old_grid[1]} patches.")
    if old_grid == tuple(grid):
        return posemb
    old = posemb[prefix:].reshape(*old_grid, -1).astype(jnp.float32)
    new = jax.image.resize(old, (*grid, old.shape[-1]), method, antialias=True).reshape(grid[0] * grid[1], -1)
    return jnp.concatenate([posemb[:prefix], new.astype(posemb.dtype)])
