"""Two towers that embed images and texts in one space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.tower import stacks_of
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.nn.functional import Params

Variables = dict[str, Params]


@dataclasses.dataclass(frozen=True)
class TwoTower:
    """An image tower, a text tower, and the learned scale (and bias) of their similarities. Defaults are SigLIP's.

    Parameters: `image/...`, `text/...`, `logit_scale` (t', the scale's logarithm) and `logit_bias`, both f32 scalars.

    Attributes:
      logit_scale_init: t' at the start: SigLIP ln 10, CLIP ln(1 / 0.07).
      logit_bias_init: b at the start; None for no bias (CLIP).
      logit_scale_max: `constrain` keeps t' within [0, this] (CLIP: ln 100); None leaves it free.
      image_mean, image_std: of pixels in [0, 1]; uint8 images are normalised with them on the device.
    """

    image: ViT = ViT()
    text: TextTransformer = TextTransformer()
    logit_scale_init: float = math.log(10)
    logit_bias_init: float | None = -10.0
    logit_scale_max: float | None = None
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if self.image.dim != self.text.dim:
            raise UserError(
                f"the towers' outputs differ in width: image {self.image.dim}, text {self.text.dim}; "
                "give both the same out_dim."
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3:
            raise UserError("image_mean and image_std need three values each, for red, green and blue.")
        if min(self.image_std) <= 0:
            raise UserError(f"image_std={self.image_std} must be above zero.")

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.image.dim

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return stacks_of(image=self.image, text=self.text)

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        image_key, text_key = jax.random.split(key)
        params: Params = {
            "image": self.image.init(image_key),
            "text": self.text.init(text_key),
            "logit_scale": jnp.float32(self.logit_scale_init),
        }
        if self.logit_bias_init is not None:
            params["logit_bias"] = jnp.float32(self.logit_bias_init)
        return {"params": params}

    def encode_image(
        self,
        variables: Variables,
        image: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """Unit-norm f32 embeddings of images, and `aux` with the image tower's `taps`.

        uint8 images are normalised here; float images are taken as the tower sees them.
        """
        image = shard.constrain(image, "batch", None, None, None)
        if image.dtype == jnp.uint8:
            image = normalize(image, self.image_mean, self.image_std)
        out, aux = self.image.apply(variables["params"]["image"], image, train=train, key=key, taps=taps)
        return shard.constrain(unit_norm(out), "batch", None), aux

    def encode_text(
        self,
        variables: Variables,
        text: Int[Array, "batch time"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """Unit-norm f32 embeddings of token ids, and `aux` with the text tower's `taps`."""
        text = shard.constrain(text, "batch", None)
        out, aux = self.text.apply(variables["params"]["text"], text, train=train, key=key, taps=taps)
        return shard.constrain(unit_norm(out), "batch", None), aux

    def encode_packed_images(
        self,
        variables: Variables,
        patches: UInt8[Array, "batch time patch"] | Float[Array, "batch time patch"],
        positions: Int[Array, "batch time 2"],
        grids: Int[Array, "batch count 2"],
        segment_ids: Int[Array, "batch time"],
    ) -> Float[Array, "batch count dim"]:
        """Unit-norm f32 embeddings of packed images, see `ViT.apply_packed`; uint8 patches are normalised here."""
        patches = shard.constrain(patches, "batch", None, None)
        patches = normalize_patches(patches, self.image_mean, self.image_std)
        out = self.image.apply_packed(variables["params"]["image"], patches, positions, grids, segment_ids)
        return shard.constrain(unit_norm(out), "batch", None, None)

    def encode_packed_texts(
        self,
        variables: Variables,
        text: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        count: int,
    ) -> Float[Array, "batch count dim"]:
        """Unit-norm f32 embeddings of packed texts, see `TextTransformer.apply_packed`."""
        text = shard.constrain(text, "batch", None)
        out = self.text.apply_packed(variables["params"]["text"], text, segment_ids, count)
        return shard.constrain(unit_norm(out), "batch", None, None)

    def scale(self, variables: Variables) -> Float[Array, ""]:
        """What similarities are multiplied by: exp(t')."""
        return jnp.exp(variables["params"]["logit_scale"])

    def bias(self, variables: Variables) -> Float[Array, ""]:
        """What is added to the scaled similarities: b, or zero where the model has none."""
        return variables["params"].get("logit_bias", jnp.float32(0))

    def constrain(self, params: Params) -> Params:
        """Parameters after an optimizer step, with t' back within [0, logit_scale_max] (CLIP, section 2.5)."""
        if self.logit_scale_max is None:
            return params
        return params | {"logit_scale": jnp.clip(params["logit_scale"], 0.0, self.logit_scale_max)}


def normalize(
    image: UInt8[Array, "*batch 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch 3"]:
    """`(image / 255 - mean) / std` in f32."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (image.astype(jnp.float32) / 255 - mean) / std


def normalize_patches(
    patches: UInt8[Array, "*batch patch"] | Float[Array, "*batch patch"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "*batch patch"]:
    """`normalize` of uint8 patches, flattened with their channels last; floats are taken as they are."""
    if patches.dtype != jnp.uint8:
        return patches
    return normalize(patches.reshape(*patches.shape[:-1], -1, 3), mean, std).reshape(patches.shape)


def unit_norm(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """`x / |x|` in f32; a vector shorter than 1e-6 keeps a finite value and gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
