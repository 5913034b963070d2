"""Text transformer: the text tower of CLIP and SigLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.tower import Tower, check
from vlm_jax.nn import pool
from vlm_jax.nn.embed import TextEmbed
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.positions import within_segments


@dataclasses.dataclass(frozen=True)
class TextTransformer(Tower):
    """From token ids to one vector a text. The defaults are SigLIP's B text tower, whose recipe adds a head.

    Attributes (besides those of `Tower`):
      length: the longest text, in tokens.
      causal: a token sees only itself and those before it (CLIP).
      pool: "last" token (SigLIP), first "eos" token (CLIP), "mean" over what is not padding, or "map".
      eos_id, pad_id: the tokenizer's; they may be equal.
      mask_padding: padding is not attended to. SigLIP and CLIP were trained without.
    """

    vocab_size: int = 32_000
    length: int = 64
    causal: bool = False
    pool: str = "last"
    eos_id: int | None = None
    pad_id: int | None = None
    mask_padding: bool = False

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("pool", self.pool, ("last", "eos", "mean", "map"))
        if self.pool == "eos" and self.eos_id is None:
            raise UserError("pool='eos' needs the tokenizer's eos_id.")
        for needs, name in ((self.pool == "mean", "pool='mean'"), (self.mask_padding, "mask_padding=True")):
            if needs and self.pad_id is None:
                raise UserError(f"{name} needs the tokenizer's pad_id.")
        for field in ("vocab_size", "length"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")

    def _embed(self, init: Initializers) -> Functional:
        return Functional(TextEmbed, self.vocab_size, self.length, self.geometry.width, dtype=self.dtype, init=init)

    @property
    def _causal(self) -> bool:
        return self.causal

    def apply(
        self,
        params: Params,
        x: Int[Array, "batch time"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """One vector a text, and `aux["taps"]`: the activations named in `taps` (see `tap_names`).

        `train` and `key` change nothing here; they are part of every tower's interface.

        Raises:
          UserError: the texts are longer than the model's `length`, or a tap is unknown.
        """
        real = None if self.pad_id is None else pool.real_tokens(x, self.pad_id, self.eos_id)

        def pooled(tokens: Float[Array, "batch time dim"]) -> Float[Array, "batch dim"]:
            if self.pool == "mean":
                return pool.mean(tokens, real)
            if self.pool == "eos":
                return pool.take(tokens, pool.eos_index(x, self.eos_id))
            return tokens[:, -1]

        tokens = self._parts["embed"](params["embed"], x)
        return self._encode(params, tokens, pooled, real if self.mask_padding else None, taps=taps)

    def validate_packed(self) -> None:
        """Raises UserError where texts that are packed would not get what they get alone, in a padded row."""
        if self.pool == "last":
            raise UserError("packed texts have no last token of a padded row: give the text tower pool='eos' or 'map'.")
        if not (self.mask_padding or (self.causal and self.pool != "map")):
            raise UserError("packed texts see no padding: give the text tower mask_padding=True.")
        if self.eos_id is None:
            raise UserError("packed texts keep their end token: give the text tower the tokenizer's eos_id.")

    def apply_packed(
        self,
        params: Params,
        text: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        count: int,
    ) -> Float[Array, "batch count dim"]:
        """One vector for each text of packed rows, what `apply` gives for it alone; any for those that are not there.

        Args:
          text: token ids without padding between texts.
          segment_ids: 1, ..., `count` for the texts of a row, contiguous; 0 for padding.

        Raises:
          UserError: see `validate_packed`.
        """
        self.validate_packed()
        x = self._parts["embed"](params["embed"], text, within_segments(segment_ids), method="packed")
        pooled = pool.segment_means if self.pool == "mean" else pool.segment_ends
        return self._encode_packed(params, x, lambda x: pooled(x, segment_ids, count), segment_ids, count)
