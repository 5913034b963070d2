"""Encoders and decoders of autoencoders: the convolutions of DALL-E, of VQGAN, and among patches; transformers.

An encoder has `init(key)`, `apply(params, image) -> [batch, rows, cols, dim]`, `dim` and `stride`, the pixels along a
side of one place; a decoder the same the other way, for features of `dim`, and gives `channels` for each pixel; `last`
is the path of its last layer's kernel.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.errors import UserError
from vlm_jax.losses import map_pixels
from vlm_jax.models.tower import Stack, check
from vlm_jax.nn import dalle, patch_convolutions, vqgan
from vlm_jax.nn.embed import ImageEmbed
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.layers import linear
from vlm_jax.nn.positions import sincos2d


@dataclasses.dataclass(frozen=True)
class Network:
    """A convolutional network; `dtype` is that of the computation, "bfloat16" or "float32"."""

    dtype: str = "bfloat16"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        check("dtype", self.dtype, ("bfloat16", "float32"))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{field.name}={value} must be at least 1.")

    @property
    def stacks(self) -> dict[str, int]:
        """No layers are scanned."""
        return {}

    def init(self, key: Array) -> Params:
        """Parameters as nested dicts of f32 arrays."""
        return self._network.init(key)

    def apply(self, params: Params, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch rows cols dim"]:
        """What the network makes of an image, or of features."""
        return self._network(params, x.astype(self.dtype))


@dataclasses.dataclass(frozen=True)
class DalleEncoder(Network):
    """DALL-E's (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2), but for its last convolution, to logits.

    Attributes:
      hidden: channels of the first group, `n_hid`. blocks: of each of four groups.
    """

    hidden: int = 256
    blocks: int = 2
    stride = 8

    @property
    def dim(self) -> int:
        """Channels of the last group."""
        return self.hidden * dalle.WIDTHS[-1]

    def apply(self, params: Params, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols dim"]:
        """Of images in [-1, 1], which the network sees in [0.1, 0.9], as DALL-E maps pixels."""
        return super().apply(params, map_pixels((x + 1) / 2))

    @functools.cached_property
    def _network(self) -> Functional:
        return Functional(dalle.Encoder, self.hidden, self.blocks, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class DalleDecoder(Network):
    """DALL-E's, but for its first convolution, which looks codes up.

    Attributes:
      dim: what it gets of a code, `n_init`. hidden, blocks: as in the encoder.
      channels: of each pixel; a mean and a scale for each colour are 6.
    """

    dim: int = 128
    hidden: int = 256
    blocks: int = 2
    channels: int = 6
    stride = 8
    last = ("output", "kernel")

    @functools.cached_property
    def _network(self) -> Functional:
        return Functional(dalle.Decoder, self.dim, self.hidden, self.blocks, self.channels, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class _Vqgan(Network):
    """What both directions of VQGAN share.

    Attributes:
      dim: of the features between them.
      widths: channels at each size, the largest first; the image is halved between them.
      blocks: of each size, one more in the decoder.
      attention: which of the sizes have attention, counted from 0. The one in the middle is always there.
      groups: of the norms.
    """

    dim: int = 256
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    groups: int = 32

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        if not self.widths or any(width % min(self.groups, width) for width in self.widths):
            raise UserError(f"widths={self.widths} must be divisible by groups={self.groups}; set both.")
        if wrong := [size for size in self.attention if not 0 <= size < len(self.widths)]:
            raise UserError(f"attention={self.attention}: there is no size {wrong[0]} among {len(self.widths)} widths.")

    @property
    def stride(self) -> int:
        """Pixels along a side of one place."""
        return 2 ** (len(self.widths) - 1)

    @property
    def _sizes(self) -> tuple:
        attention = [size in self.attention for size in range(len(self.widths))]
        return self.dim, self.widths, self.blocks, attention, self.groups


@dataclasses.dataclass(frozen=True)
class VqganEncoder(_Vqgan):
    """VQGAN's (Esser et al. 2020, arXiv:2012.09841); defaults are f16 on images of 256, with attention at 16."""

    @functools.cached_property
    def _network(self) -> Functional:
        return Functional(vqgan.Encoder, *self._sizes, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class VqganDecoder(_Vqgan):
    """VQGAN's; `channels` of each pixel, twice the colours where a scale is predicted."""

    channels: int = 3
    last = ("conv_out", "kernel")

    @functools.cached_property
    def _network(self) -> Functional:
        return Functional(vqgan.Decoder, *self._sizes, self.channels, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class _Patch(Network):
    """What both directions of convolutions among patches share. They start linear, and have no norms: small ones learn
    most of what patches hold in a few hundred steps.

    Attributes:
      width: of the features. blocks: residual, of two convolutions each. patch_size: in pixels.
    """

    width: int = 64
    blocks: int = 1
    patch_size: int = 4

    @property
    def stride(self) -> int:
        """Pixels along a side of one place."""
        return self.patch_size

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.width


@dataclasses.dataclass(frozen=True)
class PatchEncoder(_Patch):
    """Patches by one matrix, then the blocks."""

    @functools.cached_property
    def _network(self) -> Functional:
        sizes = self.width, self.blocks, self.patch_size
        return Functional(patch_convolutions.Encoder, *sizes, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class PatchDecoder(_Patch):
    """The blocks, then the pixels of each patch by one matrix; `channels` of each pixel."""

    channels: int = 3
    last = ("head", "kernel")

    @functools.cached_property
    def _network(self) -> Functional:
        sizes = self.width, self.blocks, self.patch_size, self.channels
        return Functional(patch_convolutions.Decoder, *sizes, dtype=self.dtype)


@dataclasses.dataclass(frozen=True)
class _Vit(Stack):
    """What both directions of ViT-VQGAN share (Yu et al. 2021, arXiv:2110.04627, section 3.1).

    Attributes (besides those of `Stack`):
      patch_size, image_size: in pixels.
    """

    patch_size: int = 8
    image_size: int = 256

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        if min(self.patch_size, self.image_size) < 1 or self.image_size % self.patch_size:
            raise UserError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}.")
        if self.geometry.width % 4:
            raise UserError(f"positions need a width divisible by 4, not {self.geometry.width}.")

    @property
    def stride(self) -> int:
        """Pixels along a side of one place."""
        return self.patch_size

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.geometry.width


@dataclasses.dataclass(frozen=True)
class VitEncoder(_Vit):
    """Patches and transformer blocks."""

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        options = {"patch_size": self.patch_size, "grid": self.image_size // self.patch_size, "stem_channels": ()}
        options |= {"posemb": "learn", "posemb_resize": "bilinear", "cls_token": False, "registers": 0, "trim": False}
        embed = Functional(ImageEmbed, self.geometry.width, **options, bias=True, dtype=self.dtype, init=self._init)
        return {"embed": embed, "ln_post": self._norm()}

    def apply(self, params: Params, x: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols dim"]:
        """The last norm's output for each patch."""
        rows, cols = x.shape[1] // self.patch_size, x.shape[2] // self.patch_size
        stream, _ = self._blocks.stream(params["blocks"], self._parts["embed"](params["embed"], x))
        out = self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")
        return out.reshape(out.shape[0], rows, cols, -1)


@dataclasses.dataclass(frozen=True)
class VitDecoder(_Vit):
    """The way back: fixed positions, transformer blocks, and the pixels of each patch by one matrix.

    Attributes: `channels` of each pixel.
    """

    channels: int = 3
    last = ("head", "kernel")

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        pixels = self.patch_size**2 * self.channels
        head = Functional(linear, self.geometry.width, pixels, init=self._init.head, dtype=self.dtype)
        return {"ln_post": self._norm(), "head": head}

    def apply(self, params: Params, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch height width dim"]:
        """Pixels, f32."""
        batch, rows, cols, width = x.shape
        x = x.reshape(batch, rows * cols, width) + sincos2d(rows, cols, width)
        stream, _ = self._blocks.stream(params["blocks"], x.astype(self.dtype))
        x = self._parts["ln_post"](params["ln_post"], *stream, method="of_sum")
        x = self._parts["head"](params["head"], x).astype(jnp.float32)
        x = x.reshape(batch, rows, cols, self.patch_size, self.patch_size, self.channels).swapaxes(2, 3)
        return x.reshape(batch, rows * self.patch_size, cols * self.patch_size, self.channels)
