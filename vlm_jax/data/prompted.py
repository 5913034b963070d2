"""Texts of two parts, a prompt that is given and an answer that is to be predicted, as rows of token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

# Of one record: by task, the pairs of prompt and answer that it has.
Pairs = Sequence[Sequence[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Rows of a begin token, a prompt, an answer and an end token; what is too long loses the answer's end.

    Attributes:
      text: its tokenizer, canonical form and length.
    """

    text: Text

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for texts that do not begin and end with tokens of their own."""
        text = self.text
        if not (text.bos and text.eos == "sticky" and text.pad_side == "right"):
            raise UserError(
                f"Prompted.text has bos={text.bos}, eos={text.eos!r}, pad_side={text.pad_side!r}; wanted are bos=True, "
                "eos='sticky' and pad_side='right'."
            )

    def check(self, image: ImageTransform) -> None:
        """Raises UserError where images are cut or mirrored, for prompts and answers may say where something is."""
        fixed = {"resize": "squash", "random_resized_crop": None, "flip": False, "pad_crop": 0, "crop_pct": 1.0}
        for name, value in fixed.items():
            if (found := getattr(image, name)) != value:
                raise UserError(f"prompted texts may name places in the whole image: ImageTransform.{name}={found!r} "
                                f"moves them, set it to {value!r}.")  # fmt: skip

    def prompt(self, prompt: str) -> list[int]:
        """The tokens that an answer comes after."""
        return [self.text.model.bos_id, *self._encode(prompt)]

    def __call__(
        self, pairs: Sequence[tuple[str, str]]
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, "n length"]]:
        """Rows of token ids, and which of them belong to the answer or are the end token.

        Raises:
          UserError: a prompt leaves no room for an answer.
        """
        length = self.text.length
        rows = np.full((len(pairs), length), self.text.pad_id, np.int32)
        target = np.zeros((len(pairs), length), bool)
        for k, (prompt, answer) in enumerate(pairs):
            given = self.prompt(prompt)
            room = length - len(given) - 1
            if room < 1:
                raise UserError(f"a prompt of {len(given)} tokens in Prompted.text.length={length}: {prompt[:60]!r}.")
            tokens = [*given, *self._encode(answer)[:room], self.text.eos_id]
            rows[k, : len(tokens)] = tokens
            target[k, len(given) : len(tokens)] = True
        return rows, target

    def _encode(self, text: str) -> list[int]:
        return self.text.model.encode(self.text.canonical(text))


def choose(pairs: Pairs, uniform: float) -> tuple[str, str]:
    """A pair: first the task, then one of its pairs, all equally likely. `uniform` is drawn from [0, 1)."""
    tasks = [task for task in pairs if task]
    task, rest = divmod(uniform * len(tasks), 1)
    chosen = tasks[int(task)]
    return chosen[int(rest * len(chosen))]
