"""Fuyu (Bavishi et al. 2023, adept.ai/blog/fuyu-8b): patches of an image, each by one matrix, in a decoder."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.multimodal import Batch, MultimodalDecoder, Variables, native, place, places
from vlm_jax.models.two_tower import normalize_patches
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.layers import linear


@dataclasses.dataclass(frozen=True)
class Fuyu(MultimodalDecoder):
    """No image encoder: a patch is a token, and each row of patches ends with a newline token of the vocabulary.

    The decoder's causal positions are all that says where a patch is, so that images may have any size. Each takes
    `rows * (columns + 1)` places.

    Parameters: `patch/...`, `decoder/...`.

    Attributes (besides those of `MultimodalDecoder`):
      patch_size: side of a patch in pixels.
      patches, images: of a row, at most.
      newline_id: of the token after each row of patches.
      image_mean, image_std: of pixels in [0, 1]; uint8 patches are normalised with them on the device.
    """

    patch_size: int = 30
    patches: int = 1296
    images: int = 1
    newline_id: int = 71_019
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        for field in ("patch_size", "patches", "images"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if not 0 <= self.newline_id < self.vocab_size:
            raise UserError(f"newline_id={self.newline_id} is no token of decoder.vocab_size={self.vocab_size}.")

    @functools.cached_property
    def _patch(self) -> Functional:
        width = self.decoder.geometry.width
        init = initializers("gpt", width=width, depth=1).head
        return Functional(linear, 3 * self.patch_size**2, width, init=init, dtype=self.decoder.dtype)

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        patch, decoder = jax.random.split(key)
        return {"params": {"patch": self._patch.init(patch), "decoder": self.decoder.init(decoder)}}

    def check_images(self, images: Any) -> None:
        """Raises UserError where the data has patches of another kind."""
        native(images, self.patch_size, 1, False, self.patches, self.images)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """`patches` uint8 [batch, patches, pixels * 3] of a row's images, their `image_grids`, and `text_image_ids`."""
        spec = {
            "patches": ((self.patches, 3 * self.patch_size**2), jnp.uint8),
            "image_grids": ((self.images, 2), jnp.int32),
            "text_image_ids": ((length,), jnp.int32),
        }
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}

    def patch_vectors(
        self, variables: Variables, patches: UInt8[Array, "batch count patch"] | Float[Array, "batch count patch"]
    ) -> Float[Array, "batch count dim"]:
        """What the decoder gets of patches in (row, column, channel) order."""
        patches = normalize_patches(patches, self.image_mean, self.image_std)
        return self._patch(variables["params"]["patch"], patches)

    def embed(self, variables: Variables, batch: Batch, *, train: bool = False) -> Float[Array, "batch time dim"]:
        """The vectors of tokens, and of the patches at their places."""
        ids = batch["text_image_ids"]
        where = places(ids, batch["image_grids"], cls=False)
        text = jnp.where(where.is_end, self.newline_id, batch["text"])
        text = self.decoder.embed(variables["params"]["decoder"], text)
        vectors = self.patch_vectors(variables, batch["patches"])
        return place(text, vectors, where.patch, jnp.where(where.is_end, 0, ids))
