"""SugarCrepe: captions of COCO images against hard ones that are wrong (Hsieh et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.readers.base import Choice, Choices, checked, checked_object, load_json

SUBSETS = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")


@dataclasses.dataclass(frozen=True)
class SugarCrepe(Choices):
    """`path` is the folder with `add_obj.json` and the other six files, `images` is COCO's `val2017`.

    A file is an object of cases by number, each with `filename`, `caption` and `negative_caption`, as the authors'
    evaluation script reads it (github.com/RAIVNLab/sugar-crepe, main_eval.py).

    Attributes:
      subsets: the files that are used.
    """

    subsets: tuple[str, ...] = SUBSETS

    KIND: ClassVar[str] = "sugar_crepe"

    def validate(self) -> None:
        """Raises: UserError."""
        for name in self.subsets:
            if name not in SUBSETS:
                raise UserError(f"SugarCrepe.subsets: {name!r}; {closest(name, SUBSETS)}")
        super().validate()

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser() / f"{name}.json" for name in self.subsets]

    @functools.cached_property
    def _cases(self) -> list[tuple[str, tuple[Choice, ...]]]:
        """The choices of every image, images in the order in which the files first name them."""
        cases: dict[str, list[Choice]] = {}
        for subset, file in zip(self.subsets, self.files()):
            for key, case in checked_object(load_json(file), str(file)).items():
                case = checked(case, dict(filename=str, caption=str, negative_caption=str), f"{file}, case {key},")
                choice = Choice((case["caption"], case["negative_caption"]), subset)
                cases.setdefault(case["filename"], []).append(choice)
        return [(name, tuple(choices)) for name, choices in cases.items()]

    def __len__(self) -> int:
        return len(self._cases)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._cases[index][0]}"

    def choices(self, index: int) -> tuple[Choice, ...]:
        return self._cases[index][1]
