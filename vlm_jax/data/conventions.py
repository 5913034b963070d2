"""What libraries' image processors do differently beside the size: other modes to RGB, resampling, odd cuts.

| | EXIF | transparent pixels | 16 bits | resampling |
|---|---|---|---|---|
| vlm_jax | upright | on white | scaled | Pillow's |
| transformers | ignored | on white | saturated | horizontal pass first, as its torch backend has it |
| open_clip | ignored | their own colour | saturated | Pillow's, in the image's mode: of palettes the nearest pixel |
| big_vision | ignored | their own colour | high byte | tf.image.resize in f32, then cut off to integers |
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

import numpy as np

from vlm_jax.data.errors import UnreadableImage

Name = Literal["vlm_jax", "transformers", "open_clip", "big_vision"]
NAMES = typing.get_args(Name)
ORIENTATION = 0x0112  # EXIF tag


@dataclasses.dataclass(frozen=True)
class Convention:
    """See the table above.

    Attributes:
      exif: images are turned upright.
      white: transparent pixels lie on white, as browsers show them; else what lies under them is shown.
      deep: integers of 16 bits are scaled, saturated at 255 (which is what Pillow's own conversion does), or shifted.
      own_mode: resized as they are, and RGB afterwards.
      even: the offset of an odd cut is rounded to even, as torchvision rounds it; else down.
      resample: "pillow", "rows_first" or "float"; see `vlm_jax.data.resize`.
    """

    exif: bool = False
    white: bool = False
    deep: Literal["scale", "saturate", "shift"] = "saturate"
    own_mode: bool = False
    even: bool = False
    resample: Literal["pillow", "rows_first", "float"] = "pillow"


CONVENTIONS: dict[str, Convention] = {
    "vlm_jax": Convention(exif=True, white=True, deep="scale", even=True),
    "transformers": Convention(white=True, resample="rows_first"),
    "open_clip": Convention(own_mode=True, even=True),
    "big_vision": Convention(deep="shift", resample="float"),
}


def upright(image):
    """A `PIL.Image` turned as its EXIF orientation says; a broken EXIF block says nothing."""
    from PIL import ImageOps

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the pixels are good all the same
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def to_rgb(image, convention: Convention):
    """A `PIL.Image` of any mode as RGB.

    Raises: UnreadableImage for pixels whose range is not known.
    """
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: their range is not known")
    if image.mode.startswith("I") and convention.deep != "saturate":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnreadableImage("integer pixels beyond 16 bits: their range is not known")
        values = (values + 128) // 257 if convention.deep == "scale" else values >> 8
        image = Image.fromarray(values.astype(np.uint8))
    if convention.white and image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
