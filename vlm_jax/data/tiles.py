"""High resolution as a grid of tiles and a thumbnail, as LLaVA-NeXT does at "any resolution"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from vlm_jax.data import conventions
from vlm_jax.data.augment import GREY
from vlm_jax.data.image import ImageTransform, open_image
from vlm_jax.data.resize import INTERPOLATIONS, Interpolation
from vlm_jax.errors import UserError, closest

Grid = tuple[int, int]  # rows, columns
Box = tuple[int, int, int, int]  # x0, y0, x1, y1
GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))  # LLaVA-NeXT's


@dataclasses.dataclass(frozen=True)
class Tiled:
    """An image in tiles.

    Attributes:
      tiles: the thumbnail, where there is one, then the tiles of the grid, row by row.
      grid: rows and columns.
      box: (x0, y0, x1, y1) of the image on the canvas of all tiles, in pixels; around it is padding.
      size: height and width of the image before it was resized.
    """

    tiles: UInt8[np.ndarray, "n size size 3"]
    grid: Grid
    box: Box
    size: tuple[int, int]

    @property
    def canvas(self) -> UInt8[np.ndarray, "rows*size columns*size 3"]:
        """The tiles of the grid put together again: the resized image with its padding."""
        return join(self.tiles[-math.prod(self.grid) :], self.grid)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Cuts an image into tiles of the size that an image tower takes.

    The grid is the one in which most pixels of the image are kept; of those, the one with the least padding. The image
    is resized into it at its aspect ratio, and padded on both sides. Values are those of Hugging Face's
    `LlavaNextImageProcessor` before scaling, with `fill=(0, 0, 0)`.

    Attributes:
      size: side of a tile, in pixels.
      grids: (rows, columns) that may be taken, in order of preference where two are equally good.
      interpolation: as in `data.image.ImageTransform`.
      fill: colour of padding.
      thumbnail: put the whole image first, squashed to one tile.
      convention: whose rules hold for everything else, as in `data.image.ImageTransform`.
    """

    size: int = 336
    grids: tuple[Grid, ...] = GRIDS
    interpolation: Interpolation = "bicubic"
    fill: tuple[int, int, int] = (GREY, GREY, GREY)
    thumbnail: bool = True
    convention: conventions.Name = "vlm_jax"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for a size, a grid, a colour or an interpolation that is none."""
        if self.size < 1:
            raise UserError(f"Tiles.size={self.size}: wanted is at least 1.")
        if not self.grids or not all(len(grid) == 2 and min(grid) >= 1 for grid in self.grids):
            raise UserError(f"Tiles.grids={self.grids}: wanted are pairs (rows, columns) of at least 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"Tiles.interpolation={self.interpolation!r}: {closest(self.interpolation, INTERPOLATIONS)}"
            )
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"Tiles.fill={self.fill}: wanted are red, green and blue, 0 to 255.")
        _ = self._plain

    @property
    def _plain(self) -> ImageTransform:
        """What resizes. Raises: UserError for a convention that is none, or that has not this interpolation."""
        return ImageTransform(self.size, interpolation=self.interpolation, convention=self.convention)

    @property
    def most(self) -> int:
        """Tiles of an image, at most: the length of what `stack` returns."""
        return max(map(math.prod, self.grids)) + self.thumbnail

    def __call__(self, image) -> Tiled:
        """Tiles of bytes, a uint8 array [h, w], [h, w, 1 | 3 | 4], or a `PIL.Image`. Raises: UnreadableImage."""
        plain = self._plain
        image = open_image(image, None, convention=plain.rules)
        rows, columns = grid = best_grid(image.height, image.width, self.grids, self.size)
        height, width = rows * self.size, columns * self.size
        h, w = fitted(image.height, image.width, height, width)
        y, x = (height - h) // 2, (width - w) // 2
        canvas = np.full((height, width, 3), self.fill, np.uint8)
        canvas[y : y + h, x : x + w] = plain.resized(image, (w, h))
        tiles = split(canvas, grid)
        if self.thumbnail:
            whole = plain.resized(image, (self.size, self.size))
            tiles = np.concatenate([whole[None], tiles])
        return Tiled(tiles, grid, (x, y, x + w, y + h), (image.height, image.width))

    def transform(self, image: ImageTransform) -> TileTransform:
        """What reads images in place of `image`.

        Raises: UserError where `image` has another size, or varies images, which tiles show as they are.
        """
        if image.size != self.size:
            raise UserError(f"Tiles.size={self.size}, ImageTransform.size={image.size}; set both to one value.")
        for field in ("random_resized_crop", "flip", "pad_crop", "augmentation"):
            if getattr(image, field):
                raise UserError(f"ImageTransform.{field} varies images, which tiles show as they are; leave it out.")
        return TileTransform(self)

    def stack(
        self, images: Sequence[Tiled]
    ) -> tuple[UInt8[np.ndarray, "batch most size size 3"], Bool[np.ndarray, "batch most"]]:
        """Tiles of several images in arrays whose shape does not depend on them, and which of the tiles there are."""
        tiles = np.zeros((len(images), self.most, self.size, self.size, 3), np.uint8)
        mask = np.zeros((len(images), self.most), bool)
        for row, image in enumerate(images):
            tiles[row, : len(image.tiles)] = image.tiles
            mask[row, : len(image.tiles)] = True
        return tiles, mask


@dataclasses.dataclass(frozen=True)
class TileTransform:
    """Tiles in two parts, as `ImageTransform` has; the random one is empty."""

    tiles: Tiles

    def decode_resize(self, image) -> Tiled:
        """The deterministic part. Raises: UnreadableImage."""
        return self.tiles(image)

    def augment(self, tiled: Tiled, rng: np.random.Generator) -> Tiled:
        return tiled


def best_grid(h: int, w: int, grids: Sequence[Grid], size: int) -> Grid:
    """The grid (rows, columns) of tiles in which an image of h x w keeps most pixels, then has the least padding."""

    def kept_and_padding(grid: Grid) -> tuple[int, int]:
        height, width = grid[0] * size, grid[1] * size
        scale = min(width / w, height / h)
        kept = min(int(w * scale) * int(h * scale), w * h)  # enlarging adds none
        return kept, kept - height * width

    return max(grids, key=kept_and_padding)


def fitted(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image of h x w, enlarged or shrunk to fill height x width at its aspect ratio."""
    if width / w < height / h:
        return min(math.ceil(h * (width / w)), height), width
    return height, min(math.ceil(w * (height / h)), width)


def unpadded(h: int, w: int, grid: Grid, side: int) -> Box:
    """Where an image of h x w lies on the tokens of a grid of tiles, `side` x `side` of each.

    Rows or columns of tokens that show padding alone are left out, as many on one side as on the other: one of them
    may stay, as in LLaVA-NeXT.
    """
    height, width = grid[0] * side, grid[1] * side
    x = y = 0
    if w * height > width * h:
        y = (height - h * width // w) // 2
    else:
        x = (width - w * height // h) // 2
    return x, y, width - x, height - y


def split(canvas: UInt8[np.ndarray, "height width 3"], grid: Grid) -> UInt8[np.ndarray, "rows*columns h w 3"]:
    """The tiles of a canvas, row by row."""
    rows, columns = grid
    h, w = canvas.shape[0] // rows, canvas.shape[1] // columns
    return canvas.reshape(rows, h, columns, w, 3).swapaxes(1, 2).reshape(rows * columns, h, w, 3)


def join(tiles: UInt8[np.ndarray, "rows*columns h w 3"], grid: Grid) -> UInt8[np.ndarray, "height width 3"]:
    """The canvas of its tiles: the inverse of `split`."""
    rows, columns = grid
    _, h, w, _ = tiles.shape
    return tiles.reshape(rows, columns, h, w, 3).swapaxes(1, 2).reshape(rows * h, columns * w, 3)
