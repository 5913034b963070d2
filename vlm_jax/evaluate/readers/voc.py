"""Pascal VOC's classification task: which of twenty classes an image shows (Everingham et al. 2010)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.evaluate.readers.base import Annotated

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VOC(Annotated):
    """`path` is the folder `VOC2007` (or 2012), `images` its `JPEGImages`; the layout is recalled, not re-read.

    `ImageSets/Main/CLASS_SPLIT.txt` has a line for every image: its name, and 1 (it shows the class), -1 (it does not)
    or 0 (it does, but only objects that are marked as difficult), which become 1, 0 and -1 of `labels`.

    Attributes:
      split: "train", "val", "trainval" or "test".
    """

    split: str = "test"

    KIND: ClassVar[str] = "voc"
    class_names: ClassVar[tuple[str, ...]] = CLASSES

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser() / f"ImageSets/Main/{name}_{self.split}.txt" for name in CLASSES]

    @functools.cached_property
    def _labels(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for k, file in enumerate(self.files()):
            if not file.is_file():
                raise UserError(f"there is no file {file}.")
            for number, line in enumerate(file.read_text().splitlines(), 1):
                words = line.split()
                if not words:
                    continue
                if len(words) != 2 or words[1] not in ("1", "-1", "0"):
                    raise UserError(f"{file}:{number} is {line!r}; wanted are a name and 1, -1 or 0.")
                found.setdefault(words[0], [0] * len(CLASSES))[k] = {"1": 1, "-1": 0, "0": -1}[words[1]]
        return found

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self._labels)

    def __len__(self) -> int:
        return len(self._names)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._names[index]}.jpg"

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `labels` int [20]."""
        return {"image": self.image(index), "labels": np.array(self._labels[self._names[index]], np.int32)}
