"""Token ids to the first activations of a decoder of captions."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.nn import shard
from vlm_jax.nn.embed import TextEmbed, take_rows
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import layer_norm, repeat


class CaptionEmbed(TextEmbed):
    """`TextEmbed`, where tokens may be hidden behind a MASK token, and a norm may follow.

    Args (besides those of `TextEmbed`):
      mask_token: there is one (CapPa: Tschannen et al. 2023, arXiv:2306.07915, section 3).
      norm_eps: of a LayerNorm (BART, and so TrOCR); None for none.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        width: int,
        *,
        mask_token: bool,
        norm_eps: float | None,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        super().__init__(vocab_size, length, width, dtype=dtype, init=init, rngs=rngs)
        self.mask = nnx.Param(init.token(rngs.params(), (width,))) if mask_token else None
        self.ln = None if norm_eps is None else layer_norm(width, epsilon=norm_eps, dtype=dtype, rngs=rngs)

    def __call__(
        self, text: Int[Array, "batch time"], hidden: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch time dim"]:
        """The text from its beginning; tokens that are `hidden` are MASK."""
        if text.shape[1] > self.length:
            raise UserError(f"texts of {text.shape[1]} tokens are longer than the model's length={self.length}.")
        x = take_rows(self.token[...], text, self.dtype)
        if hidden is not None:
            x = jnp.where(hidden[..., None], repeat(self.mask[...][None], text.shape[0], "float32"), x)
        return self._normed(x + shard.constrain(self.posemb[: text.shape[1]], None, "embed"))

    def at(self, text: Int[Array, "batch time"], positions: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """Tokens at any positions; one beyond the model's length gives NaN."""
        return self._normed(
            take_rows(self.token[...], text, self.dtype) + take_rows(self.posemb[...], positions, self.dtype)
        )

    def _normed(self, x: Array) -> Array:
        x = shard.constrain(x.astype(self.dtype), "batch", None, "embed")
        return x if self.ln is None else self.ln.of_sum(x, None)
