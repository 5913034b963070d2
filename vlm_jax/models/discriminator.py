"""What tells real images from decoded ones, patch by patch."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.models.codecs import Network
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.patchgan import WIDEST, PatchGan


@dataclasses.dataclass(frozen=True)
class PatchDiscriminator(Network):
    """PatchGAN as in pix2pix and VQGAN, with GroupNorm in place of BatchNorm: no logit depends on another image.

    `apply` takes images in [-1, 1] and gives a logit for each patch, f32 [batch, rows, cols].

    Attributes:
      width: channels of the first layer; they double up to 8 times that.
      layers: halvings of the image; with 3 a patch has 70 x 70 pixels.
      groups: of the norms.
    """

    width: int = 64
    layers: int = 3
    groups: int = 32

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        widths = self.width * np.minimum(2 ** np.arange(1, self.layers + 1), WIDEST)
        if (widths % np.minimum(self.groups, widths)).any():
            raise UserError(f"width={self.width}: its multiples must be divisible by groups={self.groups}; set both.")

    def check_size(self, size: int) -> None:
        """Raises UserError where an image of `size` x `size` pixels has no patch that is judged."""
        if size < (smallest := 3 * 2**self.layers):  # the last two convolutions take a row and a column each
            raise UserError(
                f"images of {size} pixels are too small for a discriminator of layers={self.layers}, which needs "
                f"{smallest}: set fewer layers."
            )

    @functools.cached_property
    def _network(self) -> Functional:
        return Functional(PatchGan, self.width, self.layers, self.groups, dtype=self.dtype)
