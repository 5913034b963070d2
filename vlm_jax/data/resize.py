"""Resizing with antialiasing: by Pillow, or several times faster with the processor's vector instructions."""

from __future__ import annotations

import threading
import typing
from typing import Literal

import numpy as np
from jaxtyping import UInt8

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


_mine = threading.local()


def _resizer():
    """This thread's own: it holds the values between the two passes."""
    from cykooz_resizer import Resizer

    if not hasattr(_mine, "resizer"):
        _mine.resizer = Resizer()
    return _mine.resizer
