"""Rows of training batches whose images are cut into tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm_jax.data.rows import Rows
from vlm_jax.data.tiles import Tiled


class TiledRows(Rows):
    """Makes the rows of any global example indices, with images as `vlm_jax.data.tiles.Tiles` cuts them. It pickles.

    `image` is uint8 [b, tiles, size, size, 3], where the thumbnail, if there is one, comes first; `image_mask` bool
    [b, tiles] says which of them there are, `tile_grid` int32 [b, 2] how many rows and columns they make, and
    `tile_box` int32 [b, 4] where on them the image lies: x0, y0, x1, y1 in pixels.
    """

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        tiles = self._pipeline.tiles
        return super().spec | {
            "image": ((tiles.most, tiles.size, tiles.size, 3), "uint8"),
            "image_mask": ((tiles.most,), "bool"),
            "tile_grid": ((2,), "int32"),
            "tile_box": ((4,), "int32"),
        }

    def _stack(self, images: Sequence[Tiled]) -> dict[str, np.ndarray]:
        stacked, mask = self._pipeline.tiles.stack(images)
        grids, boxes = (np.array([getattr(image, name) for image in images], np.int32) for name in ("grid", "box"))
        return {"image": stacked, "image_mask": mask, "tile_grid": grids, "tile_box": boxes}
