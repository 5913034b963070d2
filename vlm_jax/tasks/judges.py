"""Who judges reconstructions beside the distance of pixels: a frozen encoder, and a discriminator that learns."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.models.discriminator import PatchDiscriminator
from vlm_jax.models.vit import ViT
from vlm_jax.nn.functional import Params

Images = Float[Array, "batch height width 3"]  # in [0, 1]


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The distance of images for an encoder, see `losses.perceptual_loss`; its parameters are `perceptual/...`, to be
    frozen (`optimizer.freeze`) and taken from elsewhere (`init_from`).

    Attributes:
      image: the encoder; images are resized to its size.
      layers: blocks whose outputs for the patches are compared, counted from 0, or from -1 at the end.
      weight: of the distance, beside that of pixels.
      image_mean, image_std: of its pixels in [0, 1].
    """

    image: ViT
    layers: tuple[int, ...]
    weight: float = 1.0
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for layers that there are not, or a weight that is none."""
        depth = self.image.geometry.depth
        if wrong := [layer for layer in self.layers if not -depth <= layer < depth]:
            raise UserError(f"layers={self.layers}: the encoder has blocks 0 to {depth - 1}, and none {wrong[0]}.")
        if not self.layers or self.weight <= 0:
            raise UserError(f"Perceptual(layers={self.layers}, weight={self.weight:g}) needs a layer and a weight.")

    def features(self, params: Params, images: Images) -> list[Float[Array, "batch patches dim"]]:
        """Of each layer."""
        images = (images - jnp.asarray(self.image_mean)) / jnp.asarray(self.image_std)
        size = self.image.image_size
        if images.shape[1:3] != (size, size):
            images = jax.image.resize(images, (images.shape[0], size, size, 3), "bilinear")
        names = [self.image.tap_names[1:-2][layer] for layer in self.layers]  # between embeddings and last norm
        taps = self.image.apply(params, images, taps=names)[1]["taps"]
        return [taps[name][:, taps[name].shape[1] - self.image.grid**2 :] for name in names]

    def loss(self, params: Params, real: Images, decoded: Images) -> Float[Array, ""]:
        """The distance, without its weight. No gradient goes to the encoder."""
        params = jax.lax.stop_gradient(params)
        return losses.perceptual_loss(self.features(params, real), self.features(params, decoded))


class Judged(NamedTuple):
    """Losses of discriminator and generator, and the gradient of the latter by the decoded images.

    Only the first has gradients, and only to the discriminator's parameters.
    """

    discriminator: Float[Array, ""]
    generator: Float[Array, ""]
    gradient: Images


@dataclasses.dataclass(frozen=True)
class Adversary:
    """A discriminator, trained in the same step; its parameters are `discriminator/...`, whose learning rate is set by
    `optimizer.learning_rate_mults`.

    VQGAN's (Esser et al. 2020, arXiv:2012.09841, equations 6 and 7): hinge losses, and an adaptive weight, see
    `losses.adaptive_weight`. In microbatches each has a weight of its own.

    Attributes:
      start: the first step in which it learns and is deceived.
      weight: of the generator's loss, times the adaptive one.
    """

    discriminator: PatchDiscriminator = PatchDiscriminator()
    start: int = 0
    weight: float = 0.8

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for a start or a weight that cannot be."""
        if self.start < 0 or self.weight <= 0:
            raise UserError(f"Adversary(start={self.start}, weight={self.weight:g}): wanted are >= 0 and > 0.")

    def judged(self, params: Params, real: Images, decoded: Images, step: Array) -> Judged:
        """What it learns from, and how the decoder deceives it; before `start` zeros, without computing."""

        def judge(params, decoded) -> Judged:
            def generator(decoded):
                return losses.hinge_generator_loss(self._logits(jax.lax.stop_gradient(params), decoded))

            generator, gradient = jax.value_and_grad(generator)(decoded)
            logits = self._logits(params, real), self._logits(params, decoded)
            return Judged(losses.hinge_discriminator_loss(*logits), generator, gradient)

        def wait(params, decoded) -> Judged:
            del params
            return Judged(jnp.float32(0), jnp.float32(0), jnp.zeros_like(decoded))

        return jax.lax.cond(step >= self.start, judge, wait, params, jax.lax.stop_gradient(decoded))

    def _logits(self, params: Params, images: Images) -> Float[Array, "batch rows cols"]:
        return self.discriminator.apply(params, 2 * images - 1)
