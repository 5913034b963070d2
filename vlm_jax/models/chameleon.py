"""A decoder of texts and images in one stream of tokens, and beside it what makes tokens of images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.multimodal import TextDecoder, Variables
from vlm_jax.models.tower import stacks_of


@dataclasses.dataclass(frozen=True)
class Chameleon(TextDecoder):
    """Chameleon (2024, arXiv:2405.09818), and CM3Leon (Yu et al. 2023, arXiv:2309.02591): images are tokens like words.

    Variables: `params` with `decoder/...` and `tokenizer/...`, and `state` with `tokenizer/...`, such as a codebook.
    The tokenizer was trained before (`config.init_from={"tokenizer": WORKDIR}`) and is frozen
    (`config.optimizer.freeze=("tokenizer/.*",)`).

    Attributes (besides those of `TextDecoder`):
      tokenizer: an autoencoder with one code for each place; None where rows hold codes.
    """

    tokenizer: Autoencoder | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for a tokenizer that has no codes, or several for a place."""
        bottleneck = self.tokenizer and self.tokenizer.bottleneck
        if bottleneck and (bottleneck.vocab_size is None or bottleneck.stages is not None):
            has = "no codes" if bottleneck.vocab_size is None else f"{bottleneck.stages} codes for each place"
            raise UserError(f"tokenizer.bottleneck {type(bottleneck).__name__} has {has}; wanted is one.")

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        parts = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        return stacks_of(decoder=self.decoder, **parts)

    def init(self, key: Array) -> Variables:
        """`params` and `state`: nested dicts of arrays."""
        if self.tokenizer is None:
            return super().init(key) | {"state": {}}
        decoder, tokenizer = jax.random.split(key)
        made = self.tokenizer.init(tokenizer)
        params = super().init(decoder)["params"] | {"tokenizer": made["params"]}
        return {"params": params, "state": {"tokenizer": made["state"]} if made["state"] else {}}

    def encode_tokens(
        self, variables: Variables, image: UInt8[Array, "batch height width 3"]
    ) -> Int[Array, "batch codes"]:
        """The codes of images, row by row, int32."""
        codes = self._tokenizer.encode_tokens(self._of_tokenizer(variables), image)
        return codes.reshape(codes.shape[0], -1)

    def decode_tokens(
        self, variables: Variables, codes: Int[Array, "batch codes"]
    ) -> Float[Array, "batch height width channels"]:
        """What the tokenizer's decoder says of each pixel of the images of codes, f32."""
        tokenizer = self._tokenizer
        grids = codes.reshape(codes.shape[0], tokenizer.grid, tokenizer.grid)
        return tokenizer.decode_tokens(self._of_tokenizer(variables), grids)

    @property
    def _tokenizer(self) -> Autoencoder:
        if self.tokenizer is None:
            raise UserError("this model has no tokenizer of images: bind one at task.model.tokenizer.")
        return self.tokenizer

    def _of_tokenizer(self, variables: Variables) -> dict[str, Any]:
        state = variables.get("state", {}).get("tokenizer", {})
        return {"params": variables["params"]["tokenizer"], "state": state}
