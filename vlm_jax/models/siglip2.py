"""SigLIP 2 as it is trained (Tschannen et al. 2025, arXiv:2502.14786): two towers, a decoder, heads of distillation.

Of these only the towers are kept afterwards, and are SigLIP's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from vlm_jax.errors import UserError
from vlm_jax.models.captioner import Captions, TextDecoder
from vlm_jax.models.tower import stacks_of
from vlm_jax.models.two_tower import TwoTower, Variables
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.projection import ProjectionHead


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """A head of self-distillation: a perceptron, and prototypes whose cosines it scores.

    Attributes:
      hidden, bottleneck: widths of the perceptron's layers.
      count: of prototypes.
    """

    hidden: int = 2048
    bottleneck: int = 256
    count: int = 65_536

    def __post_init__(self):
        if min(self.hidden, self.bottleneck, self.count) < 1:
            raise UserError(f"hidden={self.hidden}, bottleneck={self.bottleneck}, count={self.count}: wanted is >= 1.")


@dataclasses.dataclass(frozen=True)
class SigLIP2(TwoTower, Captions):
    """Two towers with what they are trained by. `encode_image` and `encode_text` are those of `TwoTower`.

    Parameters: those of `TwoTower`, `decoder/...`, `mask_token` [width], `crop_head/...`, `patch_head/...`.

    Attributes (besides those of `TwoTower`):
      decoder: attends to all tokens of the image tower.
      crops, patches: the heads over pooled vectors (SILC: Naeem et al. 2023, arXiv:2310.13355) and over patches (TIPS:
        Maninis et al. 2024, arXiv:2410.16512).
    """

    decoder: TextDecoder = TextDecoder(depth=6, mask_token=True)
    crops: Prototypes = Prototypes()
    patches: Prototypes = Prototypes(count=8192)

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        super().validate()
        width, wanted = self.image.geometry.width, self.decoder.context_width or self.decoder.geometry.width
        if width != wanted:
            raise UserError(
                f"decoder.context_width={wanted}, the image tower's tokens are {width} wide; give both the same."
            )
        if self.image.pool == "cls":
            raise UserError("SigLIP 2 has no CLS token: give the image tower pool='map' or 'gap'.")

    @property
    def towers(self) -> TwoTower:
        """The towers alone, whose parameters are among these."""
        return TwoTower(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TwoTower)})

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return super().stacks | stacks_of(decoder=self.decoder)

    @functools.cached_property
    def _heads(self) -> dict[str, Functional]:
        tower = self.image
        widths = {"crop_head": (self.crops, tower.dim), "patch_head": (self.patches, tower.geometry.width)}
        options = {"dtype": tower.dtype, "init": tower._init}
        return {
            name: Functional(ProjectionHead, width, head.hidden, head.bottleneck, head.count, **options)
            for name, (head, width) in widths.items()
        }

    def init(self, key: Array) -> Variables:
        """`params`, nested dicts of f32 arrays; and `state`, the centre of the teacher's scores of each head."""
        towers, decoder, mask, *heads = jax.random.split(key, 3 + len(self._heads))
        params = super().init(towers)["params"] | {"decoder": self.decoder.init(decoder)}
        params["mask_token"] = 0.02 * jax.random.normal(mask, (self.image.geometry.width,))
        params |= {name: head.init(k) for (name, head), k in zip(self._heads.items(), heads)}
        centres = {"crop_centre": jnp.zeros(self.crops.count), "patch_centre": jnp.zeros(self.patches.count)}
        return {"params": params, "state": centres}

    def encode_image(
        self,
        variables: Variables,
        image: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"],
        *,
        train: bool = False,
        key: Array | None = None,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """See `TwoTower.encode_image`; `aux["tokens"]` [batch, patches, width] are for the decoder."""
        out, aux = super().encode_image(variables, image, train=train, key=key, taps=("ln_post", *taps))
        found = {tap: value for tap, value in aux["taps"].items() if tap in taps}
        return out, {"taps": found, "tokens": aux["taps"]["ln_post"]}

    def features(
        self,
        params: Params,
        pixels: Float[Array, "batch height width 3"],
        masked: Bool[Array, "batch patches"] | None = None,
    ) -> tuple[Float[Array, "batch dim"], Float[Array, "batch patches width"]]:
        """Of images as the tower sees them, pooled vectors before they are made unit-norm, and all patches' tokens.

        Patches that are `masked` are MASK.
        """
        masked = None if masked is None else (params["mask_token"], masked)
        pooled, aux = self.image.apply(params["image"], pixels, taps=("ln_post",), masked=masked)
        return pooled, aux["taps"]["ln_post"]

    def crop_scores(self, params: Params, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch prototypes"]:
        """f32 cosines of pooled vectors with the prototypes of `crops`."""
        return self._heads["crop_head"](params["crop_head"], pooled[:, None])[:, 0]

    def patch_scores(
        self, params: Params, tokens: Float[Array, "batch patches width"]
    ) -> Float[Array, "batch patches prototypes"]:
        """f32 cosines of tokens with the prototypes of `patches`."""
        return self._heads["patch_head"](params["patch_head"], tokens)
