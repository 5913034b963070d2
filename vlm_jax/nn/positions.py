"""Position embeddings of patches: fixed sines and cosines, and learned ones carried over to another grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.errors import UserError

RESIZES = ("bilinear", "bicubic", "cubic")


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
      method: "bilinear" (big_vision) or "bicubic" (open_clip, timm), as `jax.image.resize` names them, or "cubic":
        not antialiased, Keys' kernel with a = -3/4 (torch's bicubic, and so DINOv2's).
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
    if method == "cubic":
        rows, cols = (_cubic(before, after) for before, after in zip(old_grid, grid))
        new = jnp.einsum("hr,wc,rcd->hwd", rows, cols, old, precision="highest")
    else:
        new = jax.image.resize(old, (*grid, old.shape[-1]), method, antialias=True)
    new = new.reshape(grid[0] * grid[1], -1)
    return jnp.concatenate([posemb[:prefix], new.astype(posemb.dtype)])


def _cubic(old: int, new: int, a: float = -0.75) -> Float[np.ndarray, "new old"]:
    """Weights of interpolation between samples at half-integers, the outermost of which repeat beyond the edge."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    index = np.floor(place)[:, None].astype(int) + np.arange(-1, 3)
    t = np.abs(place[:, None] - index)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], index.clip(0, old - 1)), np.where(t <= 1, near, far))
    return weights.astype(np.float32)


def within_segments(segment_ids: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """The place of each token in its segment, from 0, where segments are contiguous; 0 in padding."""
    place = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    begins = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    first = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
    return jnp.where(segment_ids == 0, 0, place - first)


def sincos2d_at(
    positions: Int[Array, "batch time 2"], dim: int, *, temperature: float = 10_000.0
) -> Float[Array, "batch time dim"]:
    """What `sincos2d` has at each (row, column)."""
    frequency = temperature ** -(np.arange(dim // 4) / max(dim // 4 - 1, 1))
    y, x = jnp.moveaxis(positions, -1, 0)[..., None] * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


def resample_at(
    posemb: Float[Array, "grid dim"], positions: Int[Array, "batch time 2"], grids: Int[Array, "batch time 2"]
) -> Float[Array, "batch time dim"]:
    """What `resample` (bilinear) has at each (row, column), for a grid that differs from token to token.

    One product with the [side, side] positions instead of a table for each shape of image (NaFlex: Tschannen et al.
    2025, arXiv:2502.14786, section 2.4.2).
    """
    side = round(posemb.shape[0] ** 0.5)
    scale = side / grids.astype(jnp.float32)
    centre = (positions + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(side) - centre[..., None]) / jnp.maximum(scale, 1)[..., None]
    weights = jnp.maximum(0, 1 - distance)
    weights /= weights.sum(axis=-1, keepdims=True)
    rows, cols = jnp.moveaxis(weights, -2, 0)
    both = (rows[..., :, None] * cols[..., None, :]).reshape(*positions.shape[:2], -1)
    return jnp.einsum("btg,gd->btd", both, posemb.astype(jnp.float32), preferred_element_type=jnp.float32)
