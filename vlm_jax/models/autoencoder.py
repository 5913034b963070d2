"""An encoder, a bottleneck and a decoder: autoencoders from plain to discrete, and so images as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.bottlenecks.base import Bottleneck, Moment, Passed
from vlm_jax.models.codecs import (
    DalleDecoder,
    DalleEncoder,
    PatchDecoder,
    PatchEncoder,
    VitDecoder,
    VitEncoder,
    VqganDecoder,
    VqganEncoder,
)
from vlm_jax.models.tower import stacks_of

Encoder = DalleEncoder | VqganEncoder | PatchEncoder | VitEncoder
Decoder = DalleDecoder | VqganDecoder | PatchDecoder | VitDecoder
Variables = dict[str, Any]
PARTS = ("encoder", "bottleneck", "decoder")  # of its parameters; those who judged it in training are none


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """From images to latents at every `stride` x `stride` pixels, and back.

    Variables: `params` with `encoder/...`, `bottleneck/...`, `decoder/...`, and `state`, the bottleneck's.

    Attributes:
      image_size: in pixels.
    """

    encoder: Encoder
    bottleneck: Bottleneck
    decoder: Decoder
    image_size: int = 256

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if self.encoder.stride != self.decoder.stride:
            raise UserError(
                f"encoder.stride={self.encoder.stride} and decoder.stride={self.decoder.stride}: give both the same."
            )
        self.check_size(self.image_size, self.image_size)

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError where places do not divide an image."""
        stride = self.encoder.stride
        if min(height, width) < 1 or height % stride or width % stride:
            raise UserError(f"image_size={height} x {width} is not divisible by the encoder's stride of {stride}.")

    @property
    def grid(self) -> int:
        """Rows and columns of latents."""
        return self.image_size // self.encoder.stride

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return stacks_of(encoder=self.encoder, decoder=self.decoder)

    def init(self, key: Array) -> Variables:
        """`params` and `state`: nested dicts of arrays."""
        encoder, bottleneck, state, decoder = jax.random.split(key, 4)
        params = {
            "encoder": self.encoder.init(encoder),
            "bottleneck": self.bottleneck.init(bottleneck, self.encoder.dim, self.decoder.dim),
            "decoder": self.decoder.init(decoder),
        }
        return {"params": params, "state": self.bottleneck.init_state(state)}

    def features(
        self, variables: Variables, image: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch rows cols dim"]:
        """What the bottleneck gets. Images are uint8, or floats in [0, 1]; the encoder sees them in [-1, 1].

        Raises:
          UserError: the stride does not divide the image.
        """
        self.check_size(*image.shape[1:3])
        return self.encoder.apply(variables["params"]["encoder"], 2 * unit_interval(image) - 1)

    def through(self, variables: Variables, features: Float[Array, "tokens dim"], at: Moment) -> Passed:
        """The bottleneck; inside `jax.shard_map` on the rows of one device, where `at.axis_name` is given."""
        return self.bottleneck.apply(variables["params"]["bottleneck"], variables["state"], features, at)

    def decode(
        self, variables: Variables, vectors: Float[Array, "batch rows cols dim"]
    ) -> Float[Array, "batch height width channels"]:
        """What the decoder says of each pixel, f32."""
        return self.decoder.apply(variables["params"]["decoder"], vectors)

    def decode_and_pull(
        self, variables: Variables, vectors: Float[Array, "batch rows cols dim"]
    ) -> tuple[Float[Array, "batch height width channels"], Callable[[Array], Array]]:
        """`decode`, and what makes of a gradient by its result that by the kernel of its last layer."""
        params, (layer, name) = variables["params"]["decoder"], self.decoder.last
        of = lambda kernel: self.decoder.apply({**params, layer: {**params[layer], name: kernel}}, vectors)
        out, pull = jax.vjp(of, params[layer][name])
        return out, lambda gradient: pull(gradient)[0]

    def encode_tokens(
        self, variables: Variables, image: UInt8[Array, "batch height width 3"]
    ) -> Int[Array, "batch rows cols *stages"]:
        """The codes of images, int32. Raises UserError where the bottleneck has none."""
        x = self.features(variables, image)
        rows = x.reshape(-1, x.shape[-1])
        codes = self.bottleneck.codes(variables["params"]["bottleneck"], variables["state"], rows)
        return codes.reshape(*x.shape[:3], *codes.shape[1:])

    def decode_tokens(
        self, variables: Variables, codes: Int[Array, "batch rows cols *stages"]
    ) -> Float[Array, "batch height width channels"]:
        """What the decoder says of each pixel of the images that codes stand for, f32.

        Raises:
          UserError: outside of `jax.jit`, a code that there is not; or the bottleneck has none.
        """
        size = self.bottleneck.vocab_size
        if size is not None and not isinstance(codes, jax.core.Tracer) and codes.size:
            low, high = int(codes.min()), int(codes.max())
            if low < 0 or high >= size:
                raise UserError(f"token {low if low < 0 else high} is out of range: the tokens are 0 to {size - 1}.")
        stages = (self.bottleneck.stages,) if self.bottleneck.stages else ()
        rows = codes.reshape(-1, *stages)
        vectors = self.bottleneck.vectors(variables["params"]["bottleneck"], variables["state"], rows)
        return self.decode(variables, vectors.reshape(*codes.shape[:3], -1))


def unit_interval(image: Array) -> Float[Array, "batch height width 3"]:
    """Images as f32 in [0, 1], uint8 ones divided by 255."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image.astype(jnp.float32)
