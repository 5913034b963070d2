"""Images at their own aspect ratio, several to a row: sizes, patches, and which example goes where.

NaViT (Dehghani et al. 2023, arXiv:2307.06304) packs images of many sizes into sequences; NaFlex (Tschannen et al. 2025,
SigLIP 2, arXiv:2502.14786) is the case of one image a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from vlm_jax.data.image import ImageTransform, decode, open_image
from vlm_jax.data.naflex import patchify as patchify
from vlm_jax.data.packing_bins import first_fit_decreasing
from vlm_jax.data.resize import resize
from vlm_jax.errors import UserError

# An image that has so many times the pixels of the largest budget is reduced as it is read, by a whole number.
REDUCED_FROM = 16


def fit(height: int, width: int, budget: int, longest: int | None = None) -> tuple[int, int]:
    """Rows and columns of patches, at most `budget`: what distorts the image least and leaves least of it unused.

    Args:
      height, width: of the image, in any unit. Small images are enlarged, as at a fixed size.
      longest: patches that neither side exceeds.
    """
    exact = math.sqrt(budget * height / width)
    most = min(budget, longest or budget)

    def near(value: float, limit: int) -> set[int]:
        return {min(max(side, 1), limit) for side in (math.floor(value), math.ceil(value))}

    def cost(grid: tuple[int, int]) -> float:
        rows, cols = grid
        return abs(math.log(cols * height / (rows * width))) + math.log(budget / (rows * cols))

    grids = [
        (rows, cols) for rows in near(exact, most) for cols in near(rows * width / height, min(most, budget // rows))
    ]
    return min(sorted(grids), key=cost)


@dataclasses.dataclass(frozen=True)
class Placed:
    """An example in a row: its place in the window, its grid of patches, and how many of them are kept."""

    example: int
    grid: tuple[int, int]
    kept: int


@dataclasses.dataclass(frozen=True)
class Packing:
    """Windows of `examples` pairs become `rows` rows of `tokens` patches, each with its own texts beside them.

    Window w holds examples [w * examples, (w + 1) * examples) of the run and nothing else, so that a row is a function
    of its index. Where they ask for more patches than the rows have, all of them get fewer, in proportion. Largest
    first, each image goes into the first row that has room for it and its text; one that fits nowhere is made smaller
    still, for the row with most room left; and where that is less than `smallest`, the pair is left out. So rows are
    full where `demand` is 1 or a little more.

    NaFlex is `examples=1, rows=1, images=1`: one image a row, at most `tokens` patches, padded.

    Attributes:
      patch_size: side of a patch in pixels, the model's.
      tokens: patches of a row. images: pairs of a row, at most. text_tokens: tokens of all texts of a row.
      examples, rows: pairs of a window, and rows that they become. Rows are prepared by window: the batch must be a
        multiple of `rows`, and the rows of a process should be, or windows are decoded more than once.
      budgets: patches that an image may have before dropping; each value is drawn equally often.
      drop: the fraction of patches left out of an image, one for each of `budgets`; () drops none.
      smallest: patches below which no image is shrunk to fill the room that is left.
      longest: patches that no side exceeds, for models whose positions end there; None leaves sides free.
    """

    patch_size: int = 16
    tokens: int = 1024
    images: int = 16
    text_tokens: int = 384
    examples: int = 54
    rows: int = 8
    budgets: tuple[int, ...] = (64, 144, 256)
    drop: tuple[float, ...] = ()
    smallest: int = 16
    longest: int | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for sizes that nothing could be packed into."""
        for name in ("patch_size", "tokens", "images", "text_tokens", "examples", "rows", "smallest", "longest"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"Packing.{name}={getattr(self, name)} must be at least 1.")
        if not self.budgets or min(self.budgets) < 1:
            raise UserError(f"Packing.budgets={self.budgets}: wanted are numbers of patches, such as (64, 144, 256).")
        if self.drop and len(self.drop) != len(self.budgets):
            raise UserError(f"Packing.drop={self.drop}: wanted is one fraction for each of budgets={self.budgets}.")
        if not all(0 <= drop < 1 for drop in self.drop):
            raise UserError(f"Packing.drop={self.drop}: wanted are fractions, 0 <= drop < 1.")
        if (largest := max(map(self.kept, range(len(self.budgets)), self.budgets))) > self.tokens:
            raise UserError(f"Packing.tokens={self.tokens} is less than an image of {largest} patches; raise it.")
        if self.examples > self.rows * self.images:
            raise UserError(
                f"Packing.examples={self.examples} can never fit into {self.rows} rows of {self.images} images; "
                "raise rows or images."
            )

    def spec(self, *, texts: bool = True) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array that a model reads.

        `image_segment_ids` and `text_segment_ids` are 1, 2, ... for the pairs of a row and 0 for padding; an image
        and its text have the same. `patch_positions` are row and column in the image's own grid, whose rows and
        columns are `image_grids`. `pair_mask` says which of the `images` pairs there are.
        """
        spec = {
            "patches": ((self.tokens, 3 * self.patch_size**2), "uint8"),
            "patch_positions": ((self.tokens, 2), "int32"),
            "image_segment_ids": ((self.tokens,), "int32"),
            "image_grids": ((self.images, 2), "int32"),
            "pair_mask": ((self.images,), "bool"),
        }
        if texts:
            spec |= {name: ((self.text_tokens,), "int32") for name in ("text", "text_segment_ids")}
            spec["caption_id"] = ((self.images,), "int32")
        return spec

    @property
    def demand(self) -> float:
        """Patches that a window's images ask for, as a share of its rows' tokens."""
        asked = np.mean([self.kept(i, budget) for i, budget in enumerate(self.budgets)])
        return float(self.examples * asked / (self.rows * self.tokens))

    def kept(self, which: int, patches: int) -> int:
        """How many of an image's patches stay, with the `drop` of the budget that it drew."""
        return max(1, math.floor(patches * (1 - self.drop[which]) + 1e-9)) if self.drop else patches

    def draw(self, rng: np.random.Generator) -> Int[np.ndarray, "examples"]:
        """Which of `budgets` each image of a window gets: each equally often, up to one."""
        return rng.permutation((np.arange(self.examples) + rng.integers(len(self.budgets))) % len(self.budgets))

    def plan(
        self,
        sizes: Sequence[tuple[int, int]],
        drawn: Sequence[int],
        texts: Sequence[int],
    ) -> list[list[Placed]]:
        """What each row of a window holds, in order; an example that is in no row was left out.

        Args:
          sizes: height and width of each image. drawn: which of `budgets` it got. texts: tokens of its text.
        """
        grids = [fit(h, w, self.budgets[i], self.longest) for (h, w), i in zip(sizes, drawn)]
        kept = [self.kept(i, math.prod(grid)) for i, grid in zip(drawn, grids)]
        if (excess := sum(kept) / (self.rows * self.tokens)) > 1:
            smaller = [max(1, math.floor(self.budgets[i] / excess)) for i in drawn]
            grids = [fit(h, w, budget, self.longest) for (h, w), budget in zip(sizes, smaller)]
            kept = [self.kept(i, math.prod(grid)) for i, grid in zip(drawn, grids)]
        wanted = np.stack([kept, texts, np.ones_like(kept)], axis=1).astype(np.int64)
        room = np.tile(np.array([self.tokens, self.text_tokens, self.images]), (self.rows, 1))
        rows = first_fit_decreasing(wanted, room)
        for example in np.flatnonzero(rows < 0).tolist():
            free = np.where((room[:, 1:] >= wanted[example, 1:]).all(axis=1), room[:, 0], 0)
            row, which = int(free.argmax()), drawn[example]
            fraction = 1 - self.drop[which] if self.drop else 1.0
            budget = min(math.floor(int(free[row]) / fraction), self.budgets[which])
            if not free[row] or budget < self.smallest:
                continue
            grids[example] = fit(*sizes[example], budget, self.longest)
            wanted[example, 0] = self.kept(which, math.prod(grids[example]))
            room[row] -= wanted[example]
            rows[example] = row
        return [
            [
                Placed(example, grids[example], int(wanted[example, 0]))
                for example in np.flatnonzero(rows == row).tolist()
            ]
            for row in range(self.rows)
        ]

    def transform(self, image: ImageTransform) -> NativeTransform:
        """What reads and varies images in place of `image`, whose flip and augmentation it takes over.

        Raises: UserError where `image` crops, which would decide the aspect ratio.
        """
        return native_transform(image, self.patch_size, max(self.budgets))


@dataclasses.dataclass(frozen=True)
class NativeTransform:
    """Reads images at their own aspect ratio, and brings them to a grid of patches: in two parts, as `ImageTransform`.

    Attributes:
      image: says how to decode, interpolate, flip and augment; its size is not used.
      patch_size: in pixels. budget: patches of the largest image that will be asked for.
    """

    image: ImageTransform
    patch_size: int
    budget: int

    def decode_resize(self, image) -> UInt8[np.ndarray, "h w 3"]:
        """The deterministic part: decoded, at a resolution not far above the largest budget."""
        from PIL import Image

        side = math.sqrt(self.budget) * self.patch_size
        array = decode(image, math.ceil(side), self.image.decoder)
        excess = array.shape[0] * array.shape[1] / side**2
        if excess < REDUCED_FROM:
            return array
        return np.asarray(Image.fromarray(array).reduce(math.floor(math.sqrt(excess) / 2)))

    def augment(
        self, array: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, grid: tuple[int, int]
    ) -> UInt8[np.ndarray, "rows cols 3"]:
        """Resized to `grid` patches, then varied as `image` says."""
        height, width = (side * self.patch_size for side in grid)
        if array.shape[:2] != (height, width):
            image = self.image
            array = resize(open_image(array, None), (width, height), image.interpolation, image.resizer)
        return self.image.augment(array, rng)


def native_transform(image: ImageTransform, patch_size: int, budget: int) -> NativeTransform:
    """What reads and varies images in place of `image`, whose flip and augmentation it takes over.

    Raises: UserError where `image` crops, which would decide the aspect ratio.
    """
    for field in ("random_resized_crop", "pad_crop"):
        if getattr(image, field):
            raise UserError(f"ImageTransform.{field} changes the aspect ratio, which packing keeps; leave it out.")
    return NativeTransform(image, patch_size, budget)


def keep_patches(
    patches: UInt8[np.ndarray, "patches dim"], cols: int, kept: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "kept dim"], Int[np.ndarray, "kept 2"]]:
    """A random `kept` of an image's patches, in order, and the row and column of each."""
    index = np.arange(len(patches))
    if kept < len(patches):
        index = np.sort(rng.permutation(len(patches))[:kept])
    return patches[index], np.stack(np.divmod(index, cols), axis=1)


def text_lengths(rows: Int[np.ndarray, "n length"], pad_id: int, eos_id: int | None) -> Int[np.ndarray, "n"]:
    """Tokens of each padded row that are its text; where padding is the end token, the first one is the text's end."""
    if pad_id != eos_id:
        return (rows != pad_id).sum(axis=1)
    is_eos = rows == eos_id
    return np.where(is_eos.any(axis=1), is_eos.argmax(axis=1) + 1, rows.shape[1])
