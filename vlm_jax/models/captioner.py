"""Encoder-decoder captioners: a ViT, and a text decoder that attends to all of its tokens.

CapPa (Tschannen et al. 2023, arXiv:2306.07915) has norms before the branches of its decoder and a MASK token, TrOCR
(Li et al. 2021, arXiv:2109.10282) norms after them, a norm of the embeddings, and a head that is the embedding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.tower import Stack, check, stacks_of
from vlm_jax.models.two_tower import Variables, normalize, unit_norm
from vlm_jax.models.vit import ViT
from vlm_jax.nn import cache as caches
from vlm_jax.nn import pool, shard
from vlm_jax.nn.caption_embed import CaptionEmbed
from vlm_jax.nn.decoder import Decoder
from vlm_jax.nn.embed import VocabularyHead
from vlm_jax.nn.functional import Functional, Params

Cache = dict[str, Any]  # nested dicts of arrays, the batch first; see `nn.cache`


@dataclasses.dataclass(frozen=True)
class TextDecoder(Stack):
    """From token ids and a context to what the next tokens are predicted from.

    Parameters: `embed/...`, `blocks/LAYER/{attn,cross,mlp}/...`, `ln_post` (norm="pre"), `head/embedding` (not tied).

    Attributes (besides those of `Stack`):
      vocab_size, length: tokens there are, and tokens of the longest text.
      context_width: of what is attended to; None for the decoder's own width.
      norm: "pre" or "post", see `nn.decoder.PlainLayer`.
      embed_norm: a LayerNorm of the embeddings.
      tied: the head is the token embedding.
      mask_token: there is a MASK token, behind which `apply` can hide others.
      eos_id, pad_id: the tokenizer's; they may be equal.
    """

    vocab_size: int = 32_000
    length: int = 64
    context_width: int | None = None
    norm: str = "pre"
    embed_norm: bool = False
    tied: bool = False
    mask_token: bool = False
    eos_id: int | None = None
    pad_id: int | None = 0

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("norm", self.norm, ("pre", "post"))
        if self.layer_scale is not None:
            raise UserError("a decoder with cross-attention has no layer_scale; leave it None.")
        if self.vocab_size < 1 or self.length < 2:
            raise UserError(f"vocab_size={self.vocab_size} and length={self.length}: wanted are at least 1 and 2.")

    @property
    def _causal(self) -> bool:
        return not self.mask_token  # whose texts are masked row by row

    @functools.cached_property
    def _blocks(self) -> Decoder:
        context_width = self.context_width or self.geometry.width
        return Decoder(**self._block_options, context_width=context_width, layer=self.norm)

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        sizes = (self.vocab_size, self.length, self.geometry.width)
        options = {"mask_token": self.mask_token, "norm_eps": self.norm_eps if self.embed_norm else None}
        parts = {"embed": Functional(CaptionEmbed, *sizes, **options, dtype=self.dtype, init=self._init)}
        if self.norm == "pre":
            parts["ln_post"] = self._norm()
        if not self.tied:
            parts["head"] = Functional(VocabularyHead, self.vocab_size, self.geometry.width)
        return parts

    def apply(
        self,
        params: Params,
        context: Float[Array, "batch context context_dim"],
        text: Int[Array, "batch time"],
        *,
        hidden: Bool[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """What the head is applied to, of each token; a token sees those before it, and all of the context.

        Tokens that are `hidden` are MASK, and all tokens of their row see one another: so what they hide is predicted
        in parallel, from the context and from the tokens that are left.

        Raises:
          UserError: the texts are longer than the model's `length`, or some are hidden without a MASK token.
        """
        if hidden is not None and not self.mask_token:
            raise UserError("parallel prediction needs a MASK token: give the decoder mask_token=True.")
        mask = None
        if self.mask_token:
            mask = jnp.tri(text.shape[1], dtype=bool)[None]
            mask = mask if hidden is None else mask | hidden.any(axis=1)[:, None, None]
            mask = jnp.broadcast_to(mask, (text.shape[0], *mask.shape[1:]))
        x = self._parts["embed"](params["embed"], text, hidden)
        stream, _ = self._blocks.stream(params["blocks"], x, mask, context)
        return self._finished(params, stream)

    def start(self, params: Params, context: Float[Array, "batch context context_dim"], size: int) -> Cache:
        """A cache for `extend` that has the context's keys and values, and room for `size` tokens of each text.

        Raises:
          UserError: the model has no positions for so many.
        """
        if size > self.length:
            raise UserError(f"texts of {size} tokens are longer than the model's length={self.length}.")
        rows = context.shape[0]
        layers = self._blocks.start(params["blocks"], rows, size, context)
        return {"layers": layers, "length": jnp.zeros(rows, jnp.int32)}

    def extend(
        self, params: Params, text: Int[Array, "batch time"], cache: Cache, count: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """What `apply` gives for tokens that follow those of the cache, and the cache with the first `count` of each
        row."""
        length = cache["length"]
        positions = length[:, None] + jnp.arange(text.shape[1])
        x = self._parts["embed"](params["embed"], text, positions, method="at")
        stream, layers = self._blocks.extend(params["blocks"], x, cache["layers"], length)
        return self._finished(params, stream), {"layers": layers, "length": length + count}

    def _finished(self, params: Params, stream: tuple[Array, Array]) -> Float[Array, "batch time dim"]:
        if self.norm == "post":
            return sum(stream)
        return self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")

    def head(self, params: Params) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, as it rests, for `tasks.next_token`."""
        return params["embed"]["token"] if self.tied else params["head"]["embedding"]

    def real(self, text: Int[Array, "batch time"]) -> Bool[Array, "batch time"]:
        """True where a token is not padding; an end token that is also what pads is real where it stands first."""
        if self.pad_id is None:
            return jnp.ones(text.shape, bool)
        return pool.real_tokens(text, self.pad_id, self.eos_id)


class Captions:
    """What models share whose decoder takes image tokens and token ids; mixed in.

    A subclass has `image_mean`, `image_std`, and a `decoder` with the methods of `TextDecoder`.
    """

    def _pixels(self, image: Array) -> Float[Array, "batch height width 3"]:
        image = shard.constrain(image, "batch", None, None, None)
        return normalize(image, self.image_mean, self.image_std) if image.dtype == jnp.uint8 else image

    def decode(
        self,
        variables: Variables,
        image_tokens: Float[Array, "batch context context_dim"],
        text: Int[Array, "batch time"],
        **options: Any,
    ) -> Float[Array, "batch time dim"]:
        """What the logits of each next token are made from, `hidden @ head(variables).T`.

        Args:
          image_tokens: `aux["tokens"]` of `encode_image`.
          text: token ids, or the first of them.
          options: of the decoder's `apply`.
        """
        text = shard.constrain(text, "batch", None)
        return self.decoder.apply(variables["params"]["decoder"], image_tokens, text, **options)

    def head(self, variables: Variables) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, as it rests, for `tasks.next_token`."""
        return self.decoder.head(variables["params"]["decoder"])

    def start_captions(
        self,
        variables: Variables,
        image_tokens: Float[Array, "batch context context_dim"],
        prompt: Int[Array, "batch time"],
        size: int,
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """f32 logits of the token after each prompt, and the cache that `extend` takes.

        Args:
          image_tokens: `aux["tokens"]` of `encode_image`.
          prompt: at least one token a row, padded on the right.
          size: of the longest text, prompt and all.

        Raises:
          UserError: the model has no positions for so long a text.
        """
        cache = self.decoder.start(variables["params"]["decoder"], image_tokens, size)
        count = self.decoder.real(prompt).sum(axis=1, dtype=jnp.int32)
        return self._extend(variables, prompt, cache, count)

    def extend(
        self, variables: Variables, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """f32 logits of the token after these, one for each row, and the cache with theirs."""
        return self._extend(variables, tokens[:, None], cache, jnp.ones_like(tokens))

    def _extend(self, variables: Variables, text: Array, cache: Cache, count: Int[Array, " batch"]):
        hidden, cache = self.decoder.extend(variables["params"]["decoder"], text, cache, count)
        return caches.next_logits(hidden, self.head(variables), count), cache


@dataclasses.dataclass(frozen=True)
class Captioner(Captions):
    """A ViT whose tokens, CLS among them where there is one, a decoder attends to.

    Parameters: `image/...`, `decoder/...`.

    Attributes:
      image_mean, image_std: of pixels in [0, 1]; uint8 images are normalised with them on the device.
    """

    image: ViT = ViT(pool="gap")
    decoder: TextDecoder = TextDecoder(depth=6)
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if self.image.pool == "map" or self.image.out_dim is not None:
            raise UserError("a captioner takes tokens, and no pooled vector: give its image tower pool='gap' or 'cls', "
                            "and out_dim=None.")  # fmt: skip
        width, wanted = self.image.geometry.width, self.decoder.context_width or self.decoder.geometry.width
        if width != wanted:
            raise UserError(
                f"decoder.context_width={wanted}, the image tower's tokens are {width} wide; give both the same."
            )

    @property
    def text(self) -> TextDecoder:
        """What reads texts."""
        return self.decoder

    @property
    def dim(self) -> int:
        """Width of the embeddings of images."""
        return self.image.dim

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return stacks_of(image=self.image, decoder=self.decoder)

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        image, decoder = jax.random.split(key)
        return {"params": {"image": self.image.init(image), "decoder": self.decoder.init(decoder)}}

    def encode_image(
        self,
        variables: Variables,
        image: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """Unit-norm f32 embeddings of images, and `aux` with `tokens` [batch, context, width] and `taps`.

        The embedding is the ViT's pooled vector, which nothing is trained for.
        """
        params, pixels = variables["params"]["image"], self._pixels(image)
        out, aux = self.image.apply(params, pixels, train=train, key=key, taps=("ln_post", *taps))
        tokens = aux["taps"]["ln_post"]
        found = {tap: value for tap, value in aux["taps"].items() if tap in taps}
        return shard.constrain(unit_norm(out), "batch", None), {"taps": found, "tokens": tokens}
