"""NaFlex: images at their own aspect ratio, of at most so many patches, one a row (Tschannen et al. 2025, SigLIP 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# The scale is searched by halving an interval, and ends within this of the largest one: published sizes have it so.
LEAST, MOST, TOLERANCE = 1e-6, 100.0, 1e-5


def grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches: the image scaled as far as it goes, each side then rounded up to whole patches.

    Args:
      height, width: of the image in pixels; small images are enlarged.
    """

    def at(scale: float) -> tuple[int, int]:
        rows, cols = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows, cols

    low, high = LEAST, MOST
    while high - low >= TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(at(middle)) <= max_patches else (low, middle)
    return at(low)


def patchify(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "patches size_size_3"]:
    """The patches of an image row by row, each flattened in (row, column, channel) order, as `nn.embed.patchify`."""
    rows, cols = image.shape[0] // size, image.shape[1] // size
    return image.reshape(rows, size, cols, size, 3).swapaxes(1, 2).reshape(rows * cols, size * size * 3)


def rows(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], patch_size: int, max_patches: int
) -> dict[str, np.ndarray]:
    """The patches of each image in a row of its own, and what `TwoTower.encode_packed_images` takes beside them.

    `patches` uint8 [b, max_patches, 3 * patch_size**2], `positions` [b, max_patches, 2], `grids` [b, 1, 2] and
    `segment_ids` [b, max_patches] (0 where there is no patch), int32.
    """
    count = len(images)
    patches = np.zeros((count, max_patches, 3 * patch_size**2), np.uint8)
    positions, grids = np.zeros((count, max_patches, 2), np.int32), np.zeros((count, 1, 2), np.int32)
    segment_ids = np.zeros((count, max_patches), np.int32)
    for row, image in enumerate(images):
        found, columns = patchify(image, patch_size), image.shape[1] // patch_size
        patches[row, : len(found)], segment_ids[row, : len(found)] = found, 1
        positions[row, : len(found)] = np.stack(np.divmod(np.arange(len(found)), columns), axis=1)
        grids[row] = len(found) // columns, columns
    return {"patches": patches, "positions": positions, "grids": grids, "segment_ids": segment_ids}
