"""A source of images of many shapes, light enough for worker processes: record i is all of one colour, its number."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from tests.data.numbered import Numbered


@dataclasses.dataclass(frozen=True)
class Strips(Numbered):
    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)
        if isinstance(dict(self.damaged).get(index), bytes):
            return record
        height, width = np.random.default_rng(index).integers(8, 40, 2)
        file = io.BytesIO()
        Image.fromarray(np.full((height, width, 3), index % 256, np.uint8)).save(file, "PNG")
        return record | {"image": file.getvalue()}
