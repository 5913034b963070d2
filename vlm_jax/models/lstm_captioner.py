"""The captioner of Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): a CNN, and an LSTM that attends to it.

A small reference beside transformers. The encoder is a ResNet in place of VGG, trained with the rest, and its norms are
GroupNorm, which has no statistics to be kept; attention is the paper's soft kind, without its doubly stochastic term.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.captioner import Cache, Captions
from vlm_jax.models.tower import check
from vlm_jax.models.two_tower import Variables, unit_norm
from vlm_jax.nn import pool, shard
from vlm_jax.nn import resnet as layers
from vlm_jax.nn.embed import VocabularyHead
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.lstm import AttentionLstm


@dataclasses.dataclass(frozen=True)
class ResNet:
    """From images to a map of features. The defaults are ResNet-18's (He et al. 2016, arXiv:1512.03385, table 1).

    Attributes:
      image_size: in pixels.
      channels, blocks: of each stage.
      large_stem: see `nn.resnet.ResNet`.
      groups: of the norms.
    """

    image_size: int = 224
    channels: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    large_stem: bool = True
    groups: int = 32
    dtype: str = "bfloat16"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        check("dtype", self.dtype, ("bfloat16", "float32"))
        if not self.channels or len(self.channels) != len(self.blocks) or min(self.blocks) < 1:
            raise UserError(f"channels={self.channels}, blocks={self.blocks}: wanted are one number each a stage.")
        if wrong := [width for width in self.channels if width < 1 or width % self.groups]:
            raise UserError(f"groups={self.groups} does not divide channels={wrong[0]}; set both.")
        if self.image_size < 1:
            raise UserError(f"image_size={self.image_size} must be at least 1.")

    @functools.cached_property
    def _network(self) -> Functional:
        options = {"large_stem": self.large_stem, "groups": self.groups, "dtype": self.dtype}
        return Functional(layers.ResNet, self.channels, self.blocks, **options)

    def init(self, key: Array) -> Params:
        """Parameters as nested dicts of f32 arrays."""
        return self._network.init(key)

    def apply(self, params: Params, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch places channels"]:
        """The features of every place of the map."""
        out = self._network(params, x.astype(self.dtype))
        return out.reshape(out.shape[0], -1, out.shape[-1])


@dataclasses.dataclass(frozen=True)
class LstmDecoder:
    """From token ids and a context to what the next tokens are predicted from; a sibling of `captioner.TextDecoder`.

    Parameters: `lstm/...`, `head/embedding` [vocab, embed_dim].

    Attributes:
      width, embed_dim, attention_dim: see `nn.lstm.AttentionLstm`.
      vocab_size, length: tokens there are, and tokens of the longest text.
      context_width: of the features.
      eos_id, pad_id: the tokenizer's; they may be equal.
    """

    width: int = 512
    embed_dim: int = 512
    attention_dim: int = 512
    vocab_size: int = 32_000
    length: int = 64
    context_width: int = 512
    eos_id: int | None = None
    pad_id: int | None = 0
    dtype: str = "bfloat16"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        check("dtype", self.dtype, ("bfloat16", "float32"))
        for field in ("width", "embed_dim", "attention_dim", "vocab_size", "context_width"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if self.length < 2:
            raise UserError(f"length={self.length}: wanted is at least 2.")

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        sizes = (self.vocab_size, self.width, self.embed_dim, self.context_width, self.attention_dim)
        init = initializers("jax", width=self.embed_dim, depth=1)
        return {
            "lstm": Functional(AttentionLstm, *sizes, dtype=self.dtype, init=init),
            "head": Functional(VocabularyHead, self.vocab_size, self.embed_dim),
        }

    def init(self, key: Array) -> Params:
        """Parameters as nested dicts of f32 arrays."""
        keys = jax.random.split(key, len(self._parts))
        return {name: part.init(k) for (name, part), k in zip(self._parts.items(), keys)}

    def apply(
        self, params: Params, context: Float[Array, "batch context context_dim"], text: Int[Array, "batch time"]
    ) -> Float[Array, "batch time dim"]:
        """What the head is applied to, of each token; see `captioner.TextDecoder.apply`."""
        cache = self.start(params, context, text.shape[1])
        return self.extend(params, text, cache, jnp.full(text.shape[0], text.shape[1]))[0]

    def start(self, params: Params, context: Float[Array, "batch context context_dim"], size: int) -> Cache:
        """See `captioner.TextDecoder.start`; the LSTM needs no room for tokens. Raises UserError."""
        if size > self.length:
            raise UserError(f"texts of {size} tokens are longer than the model's length={self.length}.")
        state = self._parts["lstm"](params["lstm"], context, method="start")
        return {"state": state, "length": jnp.zeros(context.shape[0], jnp.int32)}

    def extend(
        self, params: Params, text: Int[Array, "batch time"], cache: Cache, count: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time dim"], Cache]:
        """See `captioner.TextDecoder.extend`."""
        out, state = self._parts["lstm"](params["lstm"], text, cache["state"], count, method="extend")
        return out, {"state": state, "length": cache["length"] + count}

    def head(self, params: Params) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, as it rests, for `tasks.next_token`."""
        return params["head"]["embedding"]

    def real(self, text: Int[Array, "batch time"]) -> Bool[Array, "batch time"]:
        """See `captioner.TextDecoder.real`."""
        return jnp.ones(text.shape, bool) if self.pad_id is None else pool.real_tokens(text, self.pad_id, self.eos_id)


@dataclasses.dataclass(frozen=True)
class LstmCaptioner(Captions):
    """A ResNet and an LSTM that attends to its features.

    Parameters: `image/...`, `decoder/...`.

    Attributes:
      image_mean, image_std: of pixels in [0, 1]; uint8 images are normalised with them on the device.
    """

    image: ResNet = ResNet()
    decoder: LstmDecoder = LstmDecoder()
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if self.image.channels[-1] != self.decoder.context_width:
            raise UserError(
                f"decoder.context_width={self.decoder.context_width}, the last stage has "
                f"{self.image.channels[-1]} channels; give both the same."
            )

    @property
    def text(self) -> LstmDecoder:
        """What reads texts."""
        return self.decoder

    @property
    def stacks(self) -> dict[str, int]:
        """No layers are scanned."""
        return {}

    @property
    def dim(self) -> int:
        """Width of the embeddings of images."""
        return self.image.channels[-1]

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
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """Unit-norm f32 means of the features of images, and `aux["tokens"]` [batch, places, channels], the features.

        `train` and `key` change nothing here.
        """
        tokens = self.image.apply(variables["params"]["image"], self._pixels(image))
        return shard.constrain(unit_norm(pool.mean(tokens)), "batch", None), {"tokens": tokens}
