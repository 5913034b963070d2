"""Decoder-only language models of the LLaMA kind (Touvron et al. 2023, arXiv:2302.13971), and their caches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.tower import Size, Stack, check
from vlm_jax.nn import shard
from vlm_jax.nn.causal import NORMS, PLACEMENTS, QK_NORMS, CausalTransformer
from vlm_jax.nn.embed import TokenEmbed, VocabularyHead
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.positions import within_segments
from vlm_jax.nn.swiglu import SWIGLU

# Heads of keys and values beside each size; SmolLM2, TinyLlama, LLaMA.
SIZES = {
    "135M": Size(576, 30, 1536, 9),
    "1B": Size(2048, 22, 5632, 32),
    "7B": Size(4096, 32, 11_008, 32),
}
KV_HEADS = {"135M": 3, "1B": 4, "7B": 32}

# `layers` as `CausalTransformer.cache` has them, and `length` int32 [batch], the places that are taken.
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LanguageModel(Stack):
    """From token ids, or vectors in their stead, to what the next token is predicted from. Defaults are LLaMA's.

    Parameters: `embed/token` [vocab, width], `blocks/...`, `ln_post`, and `head/embedding` unless it is tied.

    Attributes (besides those of `Stack`):
      size: 135M, 1B or 7B; see `SIZES`.
      num_kv_heads: heads that keys and values have, which divide `num_heads`; None for those of the size.
      head_dim: width of a head; None for `width / num_heads`.
      vocab_size: rows of the embedding and of the head.
      length: most tokens of a sequence.
      tied: the head is the embedding.
      norm: "rms" or "layer". qk_norm: the same for queries and keys, None for none; "layer_per_head" has parameters for
        every head (Chameleon), see `nn.causal.HeadNorm`.
      placement: of the norms of a block: "pre", before attention and perceptron, or "swin", after them.
      bias: of output projections and perceptrons; `qkv_bias` is that of query, key and value.
      rope_theta, rotary: base of the wavelengths of positions, and the fraction of a head that they turn.
      modalities: with 2, tokens of images have weights of their own in each block, `blocks/.../image`; see
        `nn.causal.CausalBlock`. Embedding, last norm and head are shared.
    """

    sizes: ClassVar[Mapping[str, Size]] = SIZES

    size: str = "7B"
    activation: str = SWIGLU
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    scan: bool = True
    remat: str = "block"
    init_style: str = "gpt"
    num_kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int = 32_000
    length: int = 2048
    tied: bool = False
    norm: str = "rms"
    qk_norm: str | None = None
    placement: str = "pre"
    bias: bool = False
    rope_theta: float = 10_000.0
    rotary: float = 1.0
    modalities: int = 1

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("norm", self.norm, NORMS)
        if self.qk_norm is not None:
            check("qk_norm", self.qk_norm, QK_NORMS)
        check("placement", self.placement, PLACEMENTS)
        for field in ("vocab_size", "length", "kv_heads", "dim_of_head"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if self.geometry.num_heads % self.kv_heads:
            raise UserError(
                f"num_kv_heads={self.kv_heads} does not divide num_heads={self.geometry.num_heads}; set both."
            )
        if self.layer_scale is not None:
            raise UserError("a language model has no layer_scale; leave it None.")
        if self.activation != SWIGLU and not self.bias:
            raise UserError(f"activation={self.activation!r} has biases: set bias=True, or activation={SWIGLU!r}.")
        if self.modalities not in (1, 2):
            raise UserError(f"modalities={self.modalities}: 1 is one set of weights, 2 is another one for images.")
        if self.modalities == 2 and self.qk_norm is not None:
            raise UserError(f"qk_norm={self.qk_norm!r} is not there for modalities=2; leave it None.")
        if not 0 < self.rotary <= 1 or int(self.dim_of_head * self.rotary) % 2:
            raise UserError(
                f"rotary={self.rotary} of a head of {self.dim_of_head} is no even number of features; change one."
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: those of the size, where its heads were not replaced."""
        if self.num_kv_heads is not None:
            return self.num_kv_heads
        own = self.geometry.num_heads == self.sizes[self.size].num_heads
        return KV_HEADS[self.size] if own else self.geometry.num_heads

    @property
    def dim_of_head(self) -> int:
        """The width of a head."""
        return self.geometry.width // self.geometry.num_heads if self.head_dim is None else self.head_dim

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the activations that `apply` can return; the last, "ln_post", is what it gives."""
        return ("embed", *self._blocks.tap_names, "ln_post")

    @property
    def _causal(self) -> bool:
        return True

    @functools.cached_property
    def _blocks(self) -> CausalTransformer:
        return CausalTransformer(
            **self._block_options,
            num_kv_heads=self.kv_heads,
            head_dim=self.dim_of_head,
            norm=self.norm,
            qk_norm=self.qk_norm,
            placement=self.placement,
            bias=self.bias,
            rope_theta=self.rope_theta,
            rotary=self.rotary,
            modalities=self.modalities,
        )

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        width = self.geometry.width
        parts = {
            "embed": Functional(TokenEmbed, self.vocab_size, width, dtype=self.dtype, init=self._init),
            "ln_post": Functional(NORMS[self.norm], width, epsilon=self.norm_eps, dtype=self.dtype),
        }
        if not self.tied:
            parts["head"] = Functional(VocabularyHead, self.vocab_size, width, init=self._init.head)
        return parts

    def embed(self, params: Params, text: Int[Array, "batch time"]) -> Float[Array, "batch time dim"]:
        """The vectors of token ids, in the computation's dtype."""
        return self._parts["embed"](params["embed"], text)

    def apply(
        self,
        params: Params,
        x: Int[Array, "batch time"] | Float[Array, "batch time dim"],
        segment_ids: Int[Array, "batch time"] | None = None,
        *,
        prefix: Bool[Array, "batch time"] | None = None,
        image: Bool[Array, "batch time"] | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
        """What the head is applied to, of each token, and `aux["taps"]`, the activations named there.

        Args:
          x: token ids, or vectors as `embed` gives them.
          segment_ids: 1, 2, ... for the sequences that a row packs, contiguous; 0 is padding, whose output means
            nothing. Each sequence has positions of its own, and sees nothing of the others. None: a row is one.
          prefix: tokens that all of their segment see (prefix-LM: Raffel et al. 2020, section 3.2); None for none.
          image: tokens of images, where `modalities` is 2; None for none.

        Raises:
          UserError: the sequences are longer than the model's `length`, or a tap is unknown.
        """
        x = self._vectors(params, x)
        for tap in taps:
            check("tap", tap, self.tap_names)
        if segment_ids is None:
            segment_ids = jnp.ones(x.shape[:2], jnp.int32)
        segment_ids = shard.constrain(segment_ids, "batch", None)
        positions = within_segments(segment_ids)
        stream, outputs = self._blocks.stream(params["blocks"], x, segment_ids, positions, prefix, image, taps=taps)
        hidden = self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")
        outputs |= {"embed": x, "ln_post": hidden}
        return hidden, {"taps": {tap: outputs[tap] for tap in taps}}

    def cache(self, batch: int, places: int) -> Cache:
        """An empty cache for sequences of at most `places` tokens; every leaf has the batch in front."""
        self._check_length(places)
        return {"layers": self._blocks.cache(batch, places), "length": jnp.zeros(batch, jnp.int32)}

    def extend(
        self,
        params: Params,
        x: Int[Array, "batch time"] | Float[Array, "batch time dim"],
        cache: Cache,
        count: Int[Array, " batch"] | None = None,
        *,
        image: Bool[Array, "batch time"] | None = None,
    ) -> tuple[Float[Array, "batch dim"], Cache]:
        """What the head is applied to, of the last token of each row that is put after those of the cache; and it.

        Args:
          x: ids or vectors of tokens; each row's own first, then padding.
          count: how many of them are the row's own; None for all. What padding leaves behind is not seen, and the next
            tokens are put over it.
          image: as of `apply`.
        """
        x = self._vectors(params, x)
        count = jnp.full(x.shape[0], x.shape[1]) if count is None else count
        stream, layers = self._blocks.extend(params["blocks"], x, cache["layers"], cache["length"], image)
        last = lambda x: jnp.take_along_axis(x, (count - 1)[:, None, None], axis=1)
        hidden = self._parts["ln_post"](params["ln_post"], *map(last, stream), method="of_sum")
        return hidden[:, 0], {"layers": layers, "length": cache["length"] + count}

    def head(self, params: Params) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, as it rests, for `tasks.next_token`."""
        return params["embed"]["token"] if self.tied else params["head"]["embedding"]

    def logits(self, params: Params, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """The logits of the next token, f32."""
        head = shard.constrain(self.head(params).astype(hidden.dtype), "vocab", None)
        return jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)

    def complete(self, params: Params) -> Params:
        """Parameters of a decoder of one modality (per-layer names) with those of images, which start as copies."""
        if self.modalities == 1:
            return params
        return params | {"blocks": {name: {"image": block} | block for name, block in params["blocks"].items()}}

    def _vectors(self, params: Params, x: Array) -> Float[Array, "batch time dim"]:
        self._check_length(x.shape[1])
        return self.embed(params, x) if jnp.issubdtype(x.dtype, jnp.integer) else x

    def _check_length(self, time: int) -> None:
        if time > self.length:
            raise UserError(f"sequences of {time} tokens are longer than the model's length={self.length}.")
