"""Resizing: by Pillow, several times faster with the processor's vector instructions, or in f32 as TensorFlow does."""

from __future__ import annotations

import functools
import threading
import typing
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

Interpolation = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Resizer = Literal["pillow", "simd"]
INTERPOLATIONS, RESIZERS = map(typing.get_args, (Interpolation, Resizer))
SIMD_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}


def resize(
    image,
    size: tuple[int, int],
    interpolation: Interpolation,
    resizer: Resizer = "pillow",
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """An RGB `PIL.Image`, or what lies in a box of it, at another size.

    "simd" is the package cykooz.resizer. It has Pillow's kernels and, as Pillow, rounds to 8 bits between its two
    passes; the vertical one always comes first, in Pillow mostly the horizontal. So values differ by 1, and by more
    beside edges of black against white, where bicubic and lanczos overshoot and the first pass decides what is cut off.
    "nearest" and "box" choose between pixels at equal distance, each library in its own way: they stay Pillow's.

    Args:
      size: width and height.
      box: (x0, y0, x1, y1) in pixels of the image; beside it, its pixels count too.
    """
    from PIL import Image

    if resizer == "pillow" or interpolation not in SIMD_FILTERS:
        return np.asarray(image.resize(size, Image.Resampling[interpolation.upper()], box))
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions

    options = ResizeOptions(ResizeAlg.convolution(FilterType[SIMD_FILTERS[interpolation]]))
    if box is not None:
        options.crop_box = CropBox(box[0], box[1], box[2] - box[0], box[3] - box[1])
    resized = Image.new("RGB", size)
    _resizer().resize_pil(image, resized, options)
    return np.asarray(resized)


# Of `tf.image.resize`: half-width in pixels, and the weight at a distance; bicubic is Keys' (1981) with a = -1/2.
FLOAT_FILTERS = {
    "bilinear": (1, lambda x: 1 - x),
    "bicubic": (2, lambda x: np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)),
}


def resize_float(
    array: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], interpolation: str, antialias: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """What `tf.image.resize` and a cast to uint8 give: f32 throughout, with fractions cut off at the end.

    Args:
      size: width and height.
      interpolation: one of `FLOAT_FILTERS`.
      antialias: the filter becomes as wide as what it shrinks; else pixels between the samples are passed over.
    """
    down, across = (_weights(*ends, interpolation, antialias) for ends in zip(array.shape, size[::-1]))
    resized = np.einsum("yhc,xh->yxc", _product(down, array.astype(np.float32)), across, optimize=True)
    return resized.clip(0, 255).astype(np.uint8)


def _product(weights: Float[np.ndarray, "y h"], array: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y w 3"]:
    return (weights @ array.reshape(len(array), -1)).reshape(len(weights), *array.shape[1:])


@functools.lru_cache(maxsize=64)
def _weights(length: int, size: int, interpolation: str, antialias: bool) -> Float[np.ndarray, "size length"]:
    """Of each pixel of a side for each pixel of the resized one; beyond the edge there is nothing, and the rest counts
    the more."""
    half, weight = FLOAT_FILTERS[interpolation]
    scale = length / size
    wide = max(scale, 1.0) if antialias else 1.0
    centre = (np.arange(size)[:, None] + 0.5) * scale - 0.5
    distance = np.abs(np.arange(length) - centre) / wide
    weights = np.where(distance < half, weight(distance), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


_mine = threading.local()


def _resizer():
    """This thread's own: it holds the values between the two passes."""
    from cykooz_resizer import Resizer

    if not hasattr(_mine, "resizer"):
        _mine.resizer = Resizer()
    return _mine.resizer
