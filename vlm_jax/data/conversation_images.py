"""Images among the tokens of a conversation: at one size, as tiles, or as the patches of their own aspect ratio."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.image import ImageTransform, open_image
from vlm_jax.data.packing import NativeTransform, fit, native_transform, patchify
from vlm_jax.data.resize import resize
from vlm_jax.data.tiles import GRIDS, Box, Grid, Tiled, Tiles, TileTransform, best_grid, unpadded
from vlm_jax.errors import UserError

Spec = dict[str, tuple[tuple[int, ...], str]]
Pixels = UInt8[np.ndarray, "h w 3"]
Picture = Pixels | Tiled  # what `decode_resize` of `transform` or `plain` gives
Augment = Callable[..., Picture]  # and its `augment`
Draws = np.random.Generator | None  # None: nothing is varied


class Size(NamedTuple):
    """What an image takes of a row: places among its tokens, and patches of its patches, or tiles of its tiles."""

    places: int
    patches: int = 0


@dataclasses.dataclass(frozen=True)
class PlainTransform:
    """Images as for evaluation, in the two parts that `ImageTransform` has; the random one is empty."""

    image: ImageTransform

    def decode_resize(self, image) -> Pixels:
        """The deterministic part. Raises: UnreadableImage."""
        return self.image(image)

    def augment(self, array: Pixels, rng: Draws) -> Pixels:
        return array


@dataclasses.dataclass(frozen=True)
class FixedImages:
    """Images of `ImageTransform.size`, for models that have an encoder for them.

    Attributes:
      count: images of a row, at most.
      tokens: places among the tokens that each takes, as many as the model puts there.
    """

    count: int = 1
    tokens: int = 1

    patches: ClassVar[int] = 0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for numbers that are none."""
        for name in ("count", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"FixedImages.{name}={getattr(self, name)} must be at least 1.")

    @property
    def places(self) -> int:
        """Places of an image."""
        return self.tokens

    def spec(self, size: int) -> Spec:
        """Shape of one row and type of each array: `image`, and `image_mask`, which of the `count` there are."""
        return {"image": ((self.count, size, size, 3), "uint8"), "image_mask": ((self.count,), "bool")}

    def size(self, image: Pixels) -> Size:
        """What an image takes that `transform` has read."""
        return Size(self.tokens)

    def transform(self, image: ImageTransform) -> ImageTransform:
        """What reads and varies images."""
        return image

    def plain(self, image: ImageTransform) -> PlainTransform:
        """What reads images for evaluation."""
        return PlainTransform(image)

    def write(self, row: dict[str, np.ndarray], number: int, image: Pixels, augment: Augment, rng: Draws) -> None:
        """Puts image `number`, counted from 1, into the arrays of a row."""
        row["image"][number - 1] = augment(image, rng)
        row["image_mask"][number - 1] = True


@dataclasses.dataclass(frozen=True)
class TiledImages:
    """Images at any resolution, for models that have an encoder for tiles of `ImageTransform.size`: LLaVA-NeXT.

    An image becomes a thumbnail and the tiles of the grid in which most of its pixels are kept, see `data.tiles.Tiles`.
    It takes `side * side` places for the tokens of the thumbnail, then `r * (c + 1)`: row by row of the image the c
    tokens of whatever tiles, without those that show padding alone, and one place that ends the row.

    Attributes:
      count: images of a row, at most.
      tiles: of all images of a row, thumbnails among them.
      side: rows and columns of the tokens of a tile, as many as the model has.
      grids: (rows, columns) of tiles that an image may become, in order of preference where two are equally good.
    """

    count: int = 1
    tiles: int = 5
    side: int = 24
    grids: tuple[Grid, ...] = GRIDS

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for numbers that are none, or an image that no row has room for."""
        for name in ("count", "tiles", "side"):
            if getattr(self, name) < 1:
                raise UserError(f"TiledImages.{name}={getattr(self, name)} must be at least 1.")
        if (most := Tiles(grids=self.grids).most) > self.tiles:
            raise UserError(f"TiledImages.tiles={self.tiles} is less than the {most} of one image; raise it.")

    @property
    def places(self) -> int:
        """Places of a large square image."""
        h = w = self.side * max(map(max, self.grids))
        return self._places(unpadded(h, w, best_grid(h, w, self.grids, self.side), self.side))

    @property
    def patches(self) -> int:
        """What `Size.patches` counts: tiles."""
        return self.tiles

    def spec(self, size: int) -> Spec:
        """Shape of one row and type of each array.

        `image` are the tiles of its images one after another, each image's thumbnail first, and `image_mask` says which
        of them there are; `tile_grids` are rows and columns of each image's other tiles, and `tile_boxes` where on
        their tokens it lies: x0, y0, x1, y1.
        """
        return {
            "image": ((self.tiles, size, size, 3), "uint8"),
            "image_mask": ((self.tiles,), "bool"),
            "tile_grids": ((self.count, 2), "int32"),
            "tile_boxes": ((self.count, 4), "int32"),
        }

    def box(self, image: Tiled) -> Box:
        """Where it lies on the tokens of its tiles."""
        return unpadded(*image.size, image.grid, self.side)

    def _places(self, box: Box) -> int:
        x0, y0, x1, y1 = box
        return self.side**2 + (y1 - y0) * (x1 - x0 + 1)

    def size(self, image: Tiled) -> Size:
        """What an image takes that `transform` has read."""
        return Size(self._places(self.box(image)), len(image.tiles))

    def transform(self, image: ImageTransform) -> TileTransform:
        """What reads images in place of `image`. Raises: UserError where `image` varies them."""
        options = {name: getattr(image, name) for name in ("size", "interpolation", "fill", "convention")}
        return Tiles(grids=self.grids, **options).transform(image)

    def plain(self, image: ImageTransform) -> TileTransform:
        """What reads images for evaluation, which is the same."""
        return self.transform(image)

    def write(self, row: dict[str, np.ndarray], number: int, image: Tiled, augment: Augment, rng: Draws) -> None:
        """Puts image `number`, counted from 1, into the arrays of a row, behind those before it."""
        image = augment(image, rng)
        start = int(row["image_mask"].sum())
        place = slice(start, start + len(image.tiles))
        row["image"][place], row["image_mask"][place] = image.tiles, True
        row["tile_grids"][number - 1], row["tile_boxes"][number - 1] = image.grid, self.box(image)


@dataclasses.dataclass(frozen=True)
class NativeImages:
    """Images as patches, at their own aspect ratio, for models without an encoder: EVE, Fuyu.

    An image becomes the grid of patches, within `budget`, that distorts it least. A token stands for `merge` x `merge`
    of them. An image of r x c tokens takes `cls + r * (c + 1)` places: one for the whole of it first, where there is
    `cls`, then row by row the c tokens and one that ends the row.

    Attributes:
      count: images of a row, at most.
      patch_size: side of a patch in pixels.
      patches: of all images of a row.
      budget: patches of an image, at most; small images are enlarged.
      merge: patches that a token covers along a side; 2 of EVE, 1 of Fuyu.
      cls: each image begins with a place for the whole of it, as EVE's.
      longest: patches that no side exceeds, where the model's positions end; None leaves sides free.
      view: side of a square picture of each image beside its patches, for a teacher (EVE's); None for none.
    """

    count: int = 1
    patch_size: int = 14
    patches: int = 576
    budget: int = 576
    merge: int = 1
    cls: bool = False
    longest: int | None = None
    view: int | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for sizes that no image could have."""
        for name in ("count", "patch_size", "patches", "budget", "merge", "longest", "view"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"NativeImages.{name}={getattr(self, name)} must be at least 1.")
        if self.budget < self.merge**2 or (self.longest or self.merge) < self.merge:
            raise UserError(
                f"NativeImages(budget={self.budget}, longest={self.longest}, merge={self.merge}): "
                f"an image has at least {self.merge} x {self.merge} patches."
            )
        if self.patches < self.budget:
            raise UserError(f"NativeImages.patches={self.patches} is less than an image of budget={self.budget}.")

    @property
    def places(self) -> int:
        """Places of a square image."""
        side = math.isqrt(self.budget // self.merge**2)
        return self.cls + side * (side + 1)

    def spec(self, size: int) -> Spec:
        """Shape of one row and type of each array.

        `image_segment_ids` is n for the patches of image n, counted from 1, and 0 for padding; `patch_positions` are
        row and column in the image's own grid, whose rows and columns are `image_grids`.
        """
        return {
            "patches": ((self.patches, 3 * self.patch_size**2), "uint8"),
            "patch_positions": ((self.patches, 2), "int32"),
            "image_segment_ids": ((self.patches,), "int32"),
            "image_grids": ((self.count, 2), "int32"),
            **({} if self.view is None else {"image": ((self.count, self.view, self.view, 3), "uint8")}),
        }

    def grid(self, image: Pixels) -> tuple[int, int]:
        """Rows and columns of patches, whole tokens both."""
        longest = None if self.longest is None else self.longest // self.merge
        rows, cols = fit(*image.shape[:2], self.budget // self.merge**2, longest)
        return rows * self.merge, cols * self.merge

    def size(self, image: Pixels) -> Size:
        """What an image takes that `transform` has read."""
        rows, cols = self.grid(image)
        return Size(self.cls + rows // self.merge * (cols // self.merge + 1), rows * cols)

    def transform(self, image: ImageTransform) -> NativeTransform:
        """What reads and varies images in place of `image`. Raises: UserError where `image` crops."""
        return native_transform(image, self.patch_size, self.budget)

    def plain(self, image: ImageTransform) -> NativeTransform:
        """What reads images for evaluation. Raises: UserError where `image` crops."""
        return self.transform(dataclasses.replace(image, flip=False, augmentation=None))

    def write(self, row: dict[str, np.ndarray], number: int, image: Pixels, augment: Augment, rng: Draws) -> None:
        """Puts image `number`, counted from 1, into the arrays of a row, behind those before it."""
        rows, cols = grid = self.grid(image)
        start = int((row["image_segment_ids"] > 0).sum())
        place = slice(start, start + rows * cols)
        pixels = augment(image, rng, grid)
        row["patches"][place] = patchify(pixels, self.patch_size)
        if self.view is not None:  # of the same pixels, as they were cropped and flipped
            row["image"][number - 1] = resize(open_image(pixels, None), (self.view, self.view), "bilinear")
        row["patch_positions"][place] = np.stack(np.divmod(np.arange(rows * cols), cols), axis=1)
        row["image_segment_ids"][place] = number
        row["image_grids"][number - 1] = grid
