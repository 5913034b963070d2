"""CoCa (Yu et al. 2022, arXiv:2205.01917): two towers for contrast, and a decoder that captions images.

The text tower is the lower, unimodal half of the paper's decoder, the decoder its upper, multimodal half.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.tower import Stack, check, stacks_of
from vlm_jax.models.two_tower import TwoTower, Variables
from vlm_jax.models.vit import ViT
from vlm_jax.nn import cache as caches
from vlm_jax.nn import pool
from vlm_jax.nn.cross_attention import AttentionalPooler
from vlm_jax.nn.decoder import Decoder
from vlm_jax.nn.embed import TextEmbed, VocabularyHead
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import Initializers

Cache = dict[str, Any]  # nested dicts of arrays, the batch first; see `nn.cache`


@dataclasses.dataclass(frozen=True)
class ImageTower(ViT):
    """A ViT whose tokens are pooled by attention: one query for the embedding, the others for the decoder.

    Parameters: those of `ViT`, whose `pool/...` is the pooler; `contrastive_pool/...` where that is another one.

    Attributes (besides those of `ViT`):
      pool: "cls" has a CLS token among the tokens that are pooled (open_clip), "gap" has none.
      pooler: "first" gives the embedding to the first of all queries (open_clip's); "cascade" to a query of its own
        that attends to what the others pooled, "parallel" to one that attends to the ViT's tokens (the paper's names).
      queries: of the pooler; the first one's token is not among `tokens` where it is the embedding's. With 0, of the
        parallel pooler, the decoder has the ViT's tokens themselves, as in captioners: small models that pool them
        lose where things are.
      pool_heads: attention heads of the poolers.
      out_dim: width of the poolers, and of the head after the contrastive query.
    """

    pool: str = "cls"
    pooler: str = "first"
    queries: int = 256
    pool_heads: int = 8
    out_dim: int | None = 512
    head_bias: bool = False

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("pooler", self.pooler, ("first", "cascade", "parallel"))
        check("pool", self.pool, ("cls", "gap"))
        least = {"first": 2, "cascade": 1, "parallel": 0}[self.pooler]
        if self.queries < least:
            raise UserError(f"queries={self.queries} must be at least {least} for pooler={self.pooler!r}.")
        if self.out_dim is None:
            raise UserError("out_dim is the width of the attentional pooler; set it.")
        if self.pool_heads < 1 or self.out_dim % self.pool_heads:
            raise UserError(f"out_dim={self.out_dim} is not divisible by pool_heads={self.pool_heads}; set both.")

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        parts = super()._parts
        width = self.geometry.width
        first = self.pooler == "first"
        if self.queries:
            parts["pool"] = self._pooler(width, self.queries)
        if not first:
            parts["contrastive_pool"] = self._pooler(self.out_dim if self.pooler == "cascade" else width, 1)
        parts["ln_post"] = self._norm(self.out_dim if first else width)
        parts["head"] = self._head(self.out_dim)
        return parts

    @property
    def token_width(self) -> int:
        """Of `aux["tokens"]`."""
        return self.out_dim if self.queries else self.geometry.width

    def _pooler(self, context_width: int, queries: int) -> Functional:
        sizes = (self.out_dim, context_width, self.pool_heads, queries)
        return Functional(AttentionalPooler, *sizes, norm_eps=self.norm_eps, dtype=self.dtype, init=self._init)

    def apply(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """See `ViT.apply`; `aux["tokens"]` [batch, pooled, token_width] are for the decoder."""
        self._check_taps(taps)
        outputs = {"embed": self._embedded(params, x, train, key)}
        stream, blocks = self._blocks.stream(params["blocks"], outputs["embed"], taps=taps)
        part = lambda name, *args, **kw: self._parts[name](params[name], *args, **kw)
        if self.pooler == "first":
            pooled = outputs["ln_post"] = part("ln_post", part("pool", sum(stream)), None, method="of_sum")
            one, tokens = pooled[:, 0], pooled[:, 1:]
        else:
            x = outputs["ln_post"] = part("ln_post", *stream, method="of_sum")
            tokens = part("pool", x) if self.queries else x
            one = part("contrastive_pool", tokens if self.pooler == "cascade" else x)[:, 0]
        outputs |= blocks | {"pool": one}
        return part("head", one), {"taps": {tap: outputs[tap] for tap in taps}, "tokens": tokens}

    def validate_packed(self) -> None:
        """Raises UserError."""
        raise UserError("CoCa's attentional poolers do not take packed images; leave packing out.")


@dataclasses.dataclass(frozen=True)
class TextTower(TextTransformer):
    """A causal text tower with a CLS token after each text, whose output is the embedding.

    Attributes (besides those of `TextTransformer`):
      length: the longest text, without CLS, which has a position of its own.
      pad_id: of the padding that CLS does not attend to.
      correct_cls_mask: the mask of each token is its own. Without, it is its predecessor's, as open_clip trained its
        published weights: CLS is hidden from itself in all texts that are shorter than the row.
    """

    causal: bool = True
    mask_padding: bool = True
    pad_id: int | None = 0
    out_dim: int | None = 512
    head_bias: bool = False
    correct_cls_mask: bool = True

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("pool", self.pool, ("last",))
        if not (self.causal and self.mask_padding):
            raise UserError("CoCa's text tower is causal and masks padding: set causal=True, mask_padding=True.")

    def _embed(self, init: Initializers) -> Functional:
        sizes = (self.vocab_size, self.length, self.geometry.width)
        return Functional(TextEmbed, *sizes, cls_token=True, dtype=self.dtype, init=init)

    def apply(
        self,
        params: Params,
        x: Int[Array, "batch time"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """See `TextTransformer.apply`; `aux["tokens"]` [batch, time, width] are for the decoder, without a norm."""
        self._check_taps(taps)
        mask = [self.real(x), jnp.ones((x.shape[0], 1), bool)]
        mask = jnp.concatenate(mask if self.correct_cls_mask else mask[::-1], axis=1)
        outputs = {"embed": self._parts["embed"](params["embed"], x)}
        stream, blocks = self._blocks.stream(params["blocks"], outputs["embed"], mask[:, None], taps=taps)
        x = sum(stream)
        out = outputs["ln_post"] = outputs["pool"] = self._parts["ln_post"](params["ln_post"], x[:, -1])
        outputs |= blocks
        out = out if self.out_dim is None else self._parts["head"](params["head"], out)
        return out, {"taps": {tap: outputs[tap] for tap in taps}, "tokens": x[:, :-1]}

    def start(self, params: Params, rows: int, size: int) -> Cache:
        """An empty cache for `extend`: `rows` texts with room for `size` tokens each."""
        return self._blocks.start(params["blocks"], rows, size)

    def extend(
        self, params: Params, x: Int[Array, "batch time"], cache: Cache, length: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time width"], Cache]:
        """`aux["tokens"]` of tokens that follow the first `length` of each text, and the cache with theirs."""
        x = self._parts["embed"](params["embed"], x, length[:, None] + jnp.arange(x.shape[1]), method="packed")
        stream, cache = self._blocks.extend(params["blocks"], x, cache, length)
        return sum(stream), cache

    def real(self, text: Int[Array, "batch time"]) -> Array:
        """True where a token is not padding; an end token that is also what pads is real where it stands first."""
        return pool.real_tokens(text, self.pad_id, self.eos_id)

    def validate_packed(self) -> None:
        """Raises UserError."""
        raise UserError("CoCa's CLS tokens do not come in packed texts; leave packing out.")


@dataclasses.dataclass(frozen=True)
class CaptionDecoder(Stack):
    """From tokens of images and of texts to what the next token of each text is predicted from.

    Parameters: `blocks/LAYER/causal/...` and `blocks/LAYER/cross/...`, `ln_post`, `head/embedding` [vocab, width].

    Attributes (besides those of `Stack`):
      vocab_size: rows of the head.
      context_width: of the image tokens; None for the decoder's own width.
    """

    vocab_size: int = 32_000
    context_width: int | None = None

    @property
    def _causal(self) -> bool:
        return True

    @functools.cached_property
    def _blocks(self) -> Decoder:
        return Decoder(**self._block_options, context_width=self.context_width or self.geometry.width)

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        return {"ln_post": self._norm(), "head": Functional(VocabularyHead, self.vocab_size, self.geometry.width)}

    def apply(
        self, params: Params, image: Float[Array, "batch context context_dim"], text: Float[Array, "batch time dim"]
    ) -> Float[Array, "batch time dim"]:
        """What the head is applied to, of each text token; a token sees those before it, and all of the image."""
        stream, _ = self._blocks.stream(params["blocks"], text, None, image)
        return self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")

    def start(self, params: Params, image: Float[Array, "batch context context_dim"], size: int) -> Cache:
        """A cache for `extend` that has the image's keys and values, and room for `size` tokens of each text."""
        return self._blocks.start(params["blocks"], image.shape[0], size, image)

    def extend(
        self, params: Params, text: Float[Array, "batch time dim"], cache: Cache, length: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """What `apply` gives for tokens that follow the first `length` of each text, and the cache with theirs."""
        stream, cache = self._blocks.extend(params["blocks"], text, cache, length)
        return self._parts["ln_post"](params["ln_post"], *stream, method="of_sum"), cache


@dataclasses.dataclass(frozen=True)
class CoCa(TwoTower):
    """A contrastive captioner. `encode_image` and `encode_text` are those of two towers, with `aux["tokens"]`.

    Parameters: `image/...`, `text/...`, `decoder/...`, `logit_scale`, and `logit_bias` where there is one.

    Attributes (besides those of `TwoTower`):
      decoder: takes the towers' tokens.
    """

    image: ImageTower = ImageTower()
    text: TextTower = TextTower(width=512)
    decoder: CaptionDecoder = CaptionDecoder(width=512)
    logit_scale_init: float = math.log(1 / 0.07)
    logit_bias_init: float | None = None
    logit_scale_max: float | None = math.log(100)

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        text, decoder = self.text, self.decoder
        if decoder.geometry.width != text.geometry.width:
            raise UserError(
                f"the decoder continues the text tower's tokens: width={decoder.geometry.width} of one and "
                f"{text.geometry.width} of the other; give both the same."
            )
        if decoder.vocab_size != text.vocab_size:
            raise UserError(
                f"vocab_size={decoder.vocab_size} of the decoder is {text.vocab_size} of the text tower; "
                "give both the same."
            )
        context = decoder.context_width or decoder.geometry.width
        if context != self.image.token_width:
            raise UserError(
                f"decoder.context_width={context}, the image tower's tokens are {self.image.token_width} wide "
                f"(image.{'out_dim' if self.image.queries else 'width'}); give both the same."
            )

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return super().stacks | stacks_of(decoder=self.decoder)

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        towers, decoder = jax.random.split(key)
        params = super().init(towers)["params"]
        return {"params": params | {"decoder": self.decoder.init(decoder)}}

    def decode(
        self,
        variables: Variables,
        image_tokens: Float[Array, "batch context context_dim"],
        text_tokens: Float[Array, "batch time dim"],
    ) -> Float[Array, "batch time dim"]:
        """What the logits of each next token are made from, `hidden @ head(variables).T`.

        Args:
          image_tokens: `aux["tokens"]` of `encode_image`.
          text_tokens: `aux["tokens"]` of `encode_text`, or the first of them.
        """
        return self.decoder.apply(variables["params"]["decoder"], image_tokens, text_tokens)

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
          UserError: the model has no positions for so long a text, or it has no room for the prompts.
        """
        if not prompt.shape[1] <= size <= self.text.length:
            raise UserError(
                f"prompts of {prompt.shape[1]} tokens in texts of {size}: the model has length={self.text.length}."
            )
        params, rows = variables["params"], prompt.shape[0]
        cache = {
            "text": self.text.start(params["text"], rows, size),
            "decoder": self.decoder.start(params["decoder"], image_tokens, size),
            "length": jnp.zeros(rows, jnp.int32),
        }
        return self._extend(variables, prompt, cache, self.text.real(prompt).sum(axis=1, dtype=jnp.int32))

    def extend(
        self, variables: Variables, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """f32 logits of the token after these, one for each row, and the cache with theirs."""
        return self._extend(variables, tokens[:, None], cache, jnp.ones_like(tokens))

    def _extend(self, variables: Variables, text: Array, cache: Cache, count: Int[Array, " batch"]):
        """Of each row of `text` the first `count` tokens are added."""
        params, length = variables["params"], cache["length"]
        tokens, of_text = self.text.extend(params["text"], text, cache["text"], length)
        hidden, of_decoder = self.decoder.extend(params["decoder"], tokens, cache["decoder"], length)
        cache = {"text": of_text, "decoder": of_decoder, "length": length + count}
        return caches.next_logits(hidden, self.head(variables), count), cache

    def head(self, variables: Variables) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, as it rests, for `tasks.next_token`."""
        return variables["params"]["decoder"]["head"]["embedding"]
