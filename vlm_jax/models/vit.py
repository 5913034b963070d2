"""Vision transformer (Dosovitskiy et al. 2021), with the variations that CLIP and SigLIP made to it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.tower import Tower, check
from vlm_jax.nn import pool
from vlm_jax.nn.embed import ImageEmbed
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.positions import RESIZES


@dataclasses.dataclass(frozen=True)
class ViT(Tower):
    """From images to one vector each. The defaults are SigLIP's B/16 image tower.

    Attributes (besides those of `Tower`):
      patch_size, image_size: in pixels; `image_size` is the trained one, for which positions are stored.
      stem_channels: widths of stride-2 convolutions before the patch embedding; () for plain patches.
      posemb: "learn", "sincos2d", or "factorised" into rows and columns (NaViT).
      pool: "cls" (a token of its own), "gap" (mean over patches) or "map" (attention with a learned probe).
      posemb_resize: how learned positions are carried over to images of another size: "bilinear" or "bicubic",
        antialiased, or "cubic", without and with a sharper kernel, as DINOv2 has it.
      trim: an image that patches do not divide loses the rest at its bottom and right, as it does in a convolution
        (SigLIP So400m/14 at 384); without, it is an error.
      registers: tokens beside CLS that hold no patch (Darcet et al. 2024, arXiv:2309.16588).
      pre_norm: a LayerNorm, `ln_pre`, before the first block, as CLIP has it.
      patch_dropout: fraction of patches left out of each image in training (FLIP, Li et al. 2023).
    """

    patch_size: int = 16
    image_size: int = 224
    stem_channels: tuple[int, ...] = ()
    posemb: str = "learn"
    posemb_resize: str = "bilinear"
    trim: bool = False
    registers: int = 0
    pre_norm: bool = False
    patch_bias: bool = True
    patch_dropout: float = 0.0

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        check("posemb", self.posemb, ("learn", "sincos2d", "factorised"))
        check("posemb_resize", self.posemb_resize, RESIZES)
        check("pool", self.pool, ("cls", "gap", "map"))
        if self.registers < 0 or (self.registers and self.pool != "cls"):
            raise UserError(f"registers={self.registers} must be at least 0, and stand beside a CLS token: pool='cls'.")
        for field in ("patch_size", "image_size"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if self.image_size % self.patch_size and not self.trim:
            raise UserError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}.")
        stride = 2 ** len(self.stem_channels)
        if self.patch_size % stride:
            raise UserError(f"patch_size={self.patch_size} is not divisible by {stride}, the stride of stem_channels.")
        if self.posemb == "sincos2d" and self.geometry.width % 4:
            raise UserError(f"posemb='sincos2d' needs a width divisible by 4, not {self.geometry.width}.")
        if not 0 <= self.patch_dropout < 1:
            raise UserError(f"patch_dropout={self.patch_dropout} is not a fraction in [0, 1).")

    @property
    def grid(self) -> int:
        """Rows and columns of patches of an image of the trained size."""
        return self.image_size // self.patch_size

    def _embed(self, init: Initializers) -> Functional:
        return Functional(
            ImageEmbed,
            self.geometry.width,
            patch_size=self.patch_size,
            grid=self.grid,
            stem_channels=self.stem_channels,
            posemb=self.posemb,
            posemb_resize=self.posemb_resize,
            cls_token=self.pool == "cls",
            registers=self.registers,
            trim=self.trim,
            bias=self.patch_bias,
            dtype=self.dtype,
            init=init,
        )

    @functools.cached_property
    def _parts(self) -> dict[str, Functional]:
        parts = super()._parts
        if self.pre_norm:
            parts["ln_pre"] = self._norm()
        return parts

    def apply(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
        masked: tuple[Float[Array, " dim"], Bool[Array, "batch patches"]] | None = None,
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """One vector an image, and `aux["taps"]`: the activations named in `taps` (see `tap_names`).

        Images may have another size than the trained one, if patches divide it: learned positions are resampled.
        `key`, one or one a row, is needed for patch dropout in training and for nothing else. `masked` is a vector, and
        the patches whose embeddings it takes the place of.

        Raises:
          UserError: the image is not divisible into patches, a tap is unknown, or `key` is missing.
        """
        x = self._embedded(params, x, train, key, masked)
        return self._encode(params, x, (lambda x: x[:, 0]) if self.pool == "cls" else pool.mean, taps=taps)

    def patch_features(
        self, params: Params, x: Float[Array, "batch height width 3"], layer: int | None, *, train: bool = False
    ) -> Float[Array, "batch patches dim"]:
        """What block `layer` (-1 is the last), or with None the last norm, gives for each patch, row by row."""
        name = "ln_post" if layer is None else self._blocks.tap_names[layer]
        tokens = self.apply(params, x, train=train, taps=(name,))[1]["taps"][name]
        return tokens[:, tokens.shape[1] - self.grid**2 :]

    def _embedded(
        self,
        params: Params,
        x: Float[Array, "batch height width 3"],
        train: bool,
        key: Array | None,
        masked: tuple[Array, Array] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """What the blocks get."""
        x = self._parts["embed"](params["embed"], x, masked)
        if train and self.patch_dropout:
            if key is None:
                raise UserError("patch_dropout needs a key in training.")
            x = drop_patches(x, self.patch_dropout, key, prefix=(self.pool == "cls") + self.registers)
        return self._parts["ln_pre"](params["ln_pre"], x) if self.pre_norm else x

    def validate_packed(self) -> None:
        """Raises UserError where the model cannot take packed patches."""
        if self.pool == "cls":
            raise UserError("packed images have no CLS token: give the image tower pool='map' or 'gap'.")
        if self.stem_channels:
            raise UserError("packed images are patches, which stem_channels cannot go over: set it to ().")
        if self.posemb == "learn" and self.posemb_resize != "bilinear":
            raise UserError(
                "packed images have positions of their own sizes: give the image tower posemb_resize='bilinear'."
            )
        if self.patch_dropout:
            raise UserError(
                "patches of packed images are dropped as they are packed: set Packing.drop, patch_dropout=0."
            )

    def apply_packed(
        self,
        params: Params,
        patches: Float[Array, "batch time patch"],
        positions: Int[Array, "batch time 2"],
        grids: Int[Array, "batch count 2"],
        segment_ids: Int[Array, "batch time"],
    ) -> Float[Array, "batch count dim"]:
        """One vector for each image of packed rows, what `apply` gives for the image alone; any for those not there.

        Args:
          patches: flattened as `nn.embed.patchify` does, normalised.
          positions: row and column of each patch in its image's grid.
          grids: rows and columns of each image in patches.
          segment_ids: 1, ..., count for the images of a row, 0 for padding.

        Raises:
          UserError: see `validate_packed`.
        """
        self.validate_packed()
        x = self._parts["embed"](params["embed"], patches, positions, grids, segment_ids, method="packed")
        if self.pre_norm:
            x = self._parts["ln_pre"](params["ln_pre"], x)
        count = grids.shape[1]
        return self._encode_packed(params, x, lambda x: pool.segment_means(x, segment_ids, count), segment_ids, count)


def drop_patches(
    x: Float[Array, "batch time dim"], rate: float, key: Array, *, prefix: int = 0
) -> Float[Array, "batch kept dim"]:
    """Keeps a random `1 - rate` of each row's patches, in order, and always the first `prefix` tokens.

    Each row draws from its own key, so that neither devices nor microbatches matter: `key` [batch], or one key that the
    row's index is folded into.
    """
    patches = x.shape[1] - prefix
    kept = max(1, round(patches * (1 - rate)))
    keys = key if key.ndim else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(x.shape[0]))
    noise = jax.vmap(lambda k: jax.random.uniform(k, (patches,)))(keys)
    index = jnp.sort(jnp.argsort(noise, axis=1)[:, :kept], axis=1)
    rest = jnp.take_along_axis(x[:, prefix:], index[:, :, None], axis=1)
    return jnp.concatenate([x[:, :prefix], rest], axis=1) if prefix else rest
