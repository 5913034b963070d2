"""A source in memory whose records are as a test wants them."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax.data.errors import UnreadableRecord


def picture(seed: int, width: int = 48, height: int = 40) -> np.ndarray:
    """A smooth random image, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


@dataclasses.dataclass
class Records:
    """A source of given records; one that is an exception is unreadable. `reads` counts."""

    records: list[Any]
    class_names: tuple[str, ...] = ()
    fingerprint: str = "0123"
    name = "made/up"
    reads: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, k: int) -> dict:
        self.reads += 1
        if isinstance(self.records[k], str):
            raise UnreadableRecord(self.name, f"file:{k}", self.records[k])
        return {"key": f"file:{k}", **self.records[k]}


def pairs(captions: list[str]) -> Records:
    """Different images with these captions."""
    return Records([{"image": encoded(picture(k)), "text": text} for k, text in enumerate(captions)])
