"""How many patches an image has in NaFlex: its own aspect ratio, at most so many (Tschannen et al. 2025, SigLIP 2)."""

from __future__ import annotations

import math

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
