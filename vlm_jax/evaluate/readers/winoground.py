"""Winoground: two images and two captions of the same words (Thrush et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlm_jax.errors import UserError
from vlm_jax.evaluate.readers.base import Annotated, checked


@dataclasses.dataclass(frozen=True)
class WinogroundPairs(Annotated):
    """`path` is `examples.jsonl`, `images` the folder unpacked from `images.zip` (huggingface.co/datasets/facebook).

    A line has `image_0`, `image_1` (names without their ending), `caption_0`, `caption_1` and a `collapsed_tag`. Record
    2 i + j is image j of pair i with its caption. The set is gated: the keys and the ending `.png` are as others' code
    reads them, and were not seen in the files themselves.

    Attributes:
      ending: of the images' names.
    """

    ending: str = ".png"

    KIND: ClassVar[str] = "winoground"

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser()]

    @functools.cached_property
    def _pairs(self) -> list[dict]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(f"there is no file {file}.")
        kinds = {f"{what}_{j}": str for what in ("image", "caption") for j in (0, 1)}
        pairs = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    pairs.append(checked(json.loads(line), kinds, f"{file}:{number}"))
                except ValueError as error:
                    raise UserError(f"{file}:{number} is no JSON: {error}.") from error
        return pairs

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._pairs[index // 2][f'image_{index % 2}']}{self.ending}"

    def caption(self, index: int) -> str:
        """The caption of an image, without reading it."""
        return self._pairs[index // 2][f"caption_{index % 2}"]

    def tag(self, pair: int) -> str:
        """What is swapped in a pair: "Object", "Relation" or "Both"; "" where it is not said."""
        return str(self._pairs[pair].get("collapsed_tag") or "")

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `text` its caption."""
        return {"image": self.image(index), "text": [self.caption(index)]}
