"""A picture for tests of images, and its encodings."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(h: int = 40, w: int = 60) -> np.ndarray:
    """Smooth, without symmetry, so that JPEG keeps it and a turn or a flip is noticed."""
    y, x = np.mgrid[:h, :w]
    return np.stack([255 * x / w, 255 * y / h, 255 * (x + y) / (w + h)], -1).astype(np.uint8)


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and np.abs(a.astype(int) - b).mean() < tolerance


PICTURE = gradient()
RGB = Image.fromarray(PICTURE)
