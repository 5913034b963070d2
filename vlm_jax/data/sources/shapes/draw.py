"""From a scene to pixels: drawn large with hard edges, then averaged down."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.sources.shapes.scene import COLOURS, OUTLINES, SIZES, WORD_BAND, Scene

INK = (40, 40, 40)


def render(scene: Scene, image_size: int) -> UInt8[np.ndarray, "image_size image_size 3"]:
    """Draws `scene`; edges are antialiased by drawing 2 to 6 times larger, at least 192 pixels where that allows it."""
    from PIL import Image, ImageDraw

    factor = min(6, max(2, -(-192 // image_size)))
    side = factor * image_size
    canvas = Image.new("RGB", (side, side), (scene.background,) * 3)
    pen = ImageDraw.Draw(canvas)
    for o in scene.objects:
        corners = side * (np.array([o.x, o.y]) + SIZES[o.size] * OUTLINES[o.shape])
        pen.polygon(corners.ravel().tolist(), fill=COLOURS[o.colour])
    if scene.word:
        pen.text((side / 2, side * (1 - WORD_BAND / 2)), scene.word, INK, font=_font(0.2 * side), anchor="mm")
    return np.asarray(canvas.reduce(factor))


def _font(height: float):
    from PIL import ImageFont

    return ImageFont.load_default(height)  # a vector font that Pillow carries in its wheel
