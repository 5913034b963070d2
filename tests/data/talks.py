"""A source of conversations that say which record they are, light enough for worker processes."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Talks:
    """Conversation i is "NAME i ..." and its answers, in 1 to 4 turns, over 0 to 2 images of one colour, i and i + 100.

    Attributes:
      damaged: records in place of those that would be there, by index.
    """

    name: str = "talks"
    length: int = 60
    longest: int = 40
    fingerprint: str = "f"
    class_names: tuple[str, ...] = ()
    damaged: tuple[tuple[int, object], ...] = ()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng([index, *self.name.encode()])
        numbers = [index, index + 100][: rng.integers(3)]
        messages = []
        for turn in range(rng.integers(1, 5)):
            image = "<image>" if turn < len(numbers) else ""
            messages.append(
                {"role": "user", "content": f"{self.name} {image}{index} " + "q" * rng.integers(self.longest)}
            )
            messages.append({"role": "assistant", "content": f"{index} " + "a" * rng.integers(self.longest)})
        numbers = numbers[: len(messages) // 2]
        record = {"messages": messages, "key": f"key{index}", "images": [strip(number) for number in numbers]}
        return record | dict(self.damaged).get(index, {})

    def captions(self, limit: int | None = None):
        return (f"{self.name} {index}" for index in range(self.length if limit is None else limit))


def strip(number: int) -> bytes:
    """An image all of one colour, its number, of 8 to 40 pixels a side."""
    height, width = np.random.default_rng(number).integers(8, 40, 2)
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), number % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()
