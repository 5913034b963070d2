"""One vocabulary for the tokens of texts and the codes of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of texts first, then three markers, the sentinels of masks, and the codes of images.

    Attributes:
      text: ids of texts are below it.
      codes: that the tokenizer of images has.
      sentinels: masks that a document may have, see `data.infilling`.
    """

    text: int
    codes: int
    sentinels: int = 0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for numbers that are none."""
        if self.text < 1 or self.codes < 1 or self.sentinels < 0:
            raise UserError(
                f"Vocabulary(text={self.text}, codes={self.codes}, sentinels={self.sentinels}): wanted are text >= 1, "
                "codes >= 1 and sentinels >= 0."
            )

    @property
    def image_begin(self) -> int:
        """The token before an image."""
        return self.text

    @property
    def image_end(self) -> int:
        """The token after an image."""
        return self.text + 1

    @property
    def break_id(self) -> int:
        """The token between a text and an image (CM3Leon)."""
        return self.text + 2

    def sentinel(self, number: int) -> int:
        """The token of mask `number`, from 0."""
        return self.text + 3 + number

    @property
    def first_code(self) -> int:
        """The token of code 0."""
        return self.text + 3 + self.sentinels

    @property
    def size(self) -> int:
        """Tokens of all kinds."""
        return self.first_code + self.codes

    def image(self, codes: Sequence[int] | Int32[np.ndarray, "n"]) -> Int32[np.ndarray, "n"]:
        """The tokens of codes. Raises UserError for codes that there are not."""
        codes = np.asarray(codes, np.int32)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise UserError(f"image codes {codes.min()} to {codes.max()}: the vocabulary has 0 to {self.codes - 1}.")
        return codes + np.int32(self.first_code)
