"""LLaVA (Liu et al. 2023, arXiv:2304.08485) and LLaVA-1.5 (arXiv:2310.03744): an encoder's tokens in a decoder."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.multimodal import Batch, MultimodalDecoder, Variables, place, same
from vlm_jax.models.tower import check, stacks_of
from vlm_jax.models.two_tower import normalize
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.layers import linear
from vlm_jax.nn.mlp import Projector
from vlm_jax.nn.positions import within_segments


@dataclasses.dataclass(frozen=True)
class Llava(MultimodalDecoder):
    """Tokens of a ViT, projected, stand among the text's; each image takes `image_tokens` places.

    With `tiles` an image may have any resolution (LLaVA-1.5-HD; LLaVA-NeXT, Liu et al. 2024): it is a thumbnail, which
    takes `image_tokens` places, and the tiles of a grid, whose tokens follow row by row of the whole image, with a
    learnt newline after each row.

    Parameters: `image/...`, `projector/...`, `decoder/...`; with tiles `image_newline`.

    Attributes (besides those of `MultimodalDecoder`):
      image: the encoder. LLaVA takes the last but one of CLIP's blocks, without CLS.
      layer: whose output is taken: -1 the last block, -2 the one before; None for the last norm.
      projector: "linear" (LLaVA) or "mlp" (LLaVA-1.5).
      merge: so many by so many neighbouring tokens become one, side by side (Idefics3; Laurençon et al. 2024,
        arXiv:2408.12637, section 2.1); 1 leaves them.
      images: of a row, at most.
      tiles: of a row's images, thumbnails among them, at most; None for images of one size.
      image_mean, image_std: of pixels in [0, 1]; uint8 images are normalised with them on the device.
    """

    image: ViT = ViT(pool="cls", out_dim=None)
    layer: int | None = -2
    projector: str = "mlp"
    merge: int = 1
    images: int = 1
    tiles: int | None = None
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        check("projector", self.projector, ("linear", "mlp"))
        depth = self.image.geometry.depth
        if self.layer is not None and not -depth <= self.layer < 0:
            raise UserError(f"layer={self.layer}: wanted is -1, ..., -{depth} of the encoder's blocks, or None.")
        if self.images < 1 or self.merge < 1:
            raise UserError(f"images={self.images}, merge={self.merge} must be at least 1.")
        if self.tiles is not None and self.tiles < 2:
            raise UserError(f"tiles={self.tiles}: an image takes two at least, a thumbnail and a tile; None for none.")
        side = self.image.grid
        if side % self.merge:
            raise UserError(f"merge={self.merge} does not divide the encoder's {side} x {side} tokens.")

    @property
    def side(self) -> int:
        """Rows and columns of the tokens of an image of the encoder's size."""
        return self.image.grid // self.merge

    @property
    def image_tokens(self) -> int:
        """Places that each image takes, of one in tiles its thumbnail."""
        return self.side**2

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return super().stacks | stacks_of(image=self.image)

    @functools.cached_property
    def _projector(self) -> Functional:
        in_dim, width = self.image.geometry.width * self.merge**2, self.decoder.geometry.width
        init, options = initializers("jax", width=width, depth=1), {"dtype": self.decoder.dtype}
        if self.projector == "linear":
            return Functional(linear, in_dim, width, init=init.head, **options)
        return Functional(Projector, in_dim, width, init=init, **options)

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        image, projector, decoder = jax.random.split(key, 3)
        params = {
            "image": self.image.init(image),
            "projector": self._projector.init(projector),
            "decoder": self.decoder.init(decoder),
        }
        if self.tiles is not None:
            width = self.decoder.geometry.width
            params["image_newline"] = jax.random.normal(jax.random.fold_in(key, 3), (width,)) * width**-0.5
        return {"params": params}

    def check_images(self, images: Any) -> None:
        """Raises UserError where the data has others than `images` of `image_tokens` places, or than `tiles`."""
        if self.tiles is not None:
            if not hasattr(images, "tiles"):
                raise UserError(f"Conversations.images={images}: the model takes TiledImages; bind them there.")
            for field, value in {"count": self.images, "tiles": self.tiles, "side": self.side}.items():
                same(f"TiledImages.{field}", getattr(images, field), value)
            return
        if not hasattr(images, "tokens"):
            raise UserError(f"Conversations.images={images}: the model takes FixedImages; bind them there.")
        same("FixedImages.count", images.count, self.images)
        same("FixedImages.tokens", images.tokens, self.image_tokens)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """`image` uint8 [batch, images, height, width, 3], and `text_image_ids`, which of them a place belongs to.

        With tiles `image` has these in place of images, and `tile_grids`, `tile_boxes` say how they lie, see
        `tile_places`.
        """
        size = self.image.image_size
        spec = {
            "image": ((self.tiles or self.images, size, size, 3), jnp.uint8),
            "text_image_ids": ((length,), jnp.int32),
        }
        if self.tiles is not None:
            spec |= {"tile_grids": ((self.images, 2), jnp.int32), "tile_boxes": ((self.images, 4), jnp.int32)}
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}

    def image_vectors(
        self, variables: Variables, image: Float[Array, "batch images height width 3"], *, train: bool = False
    ) -> Float[Array, "batch images tokens dim"]:
        """What the decoder gets of images; uint8 ones are normalised here."""
        batch, images = image.shape[:2]
        image = shard.constrain(image.reshape(-1, *image.shape[2:]), "batch", None, None, None)
        if image.dtype == jnp.uint8:
            image = normalize(image, self.image_mean, self.image_std)
        params = variables["params"]
        tokens = self.image.patch_features(params["image"], image, self.layer, train=train)
        if self.merge > 1:
            side, m = self.side, self.merge
            tokens = tokens.reshape(-1, side, m, side, m, tokens.shape[-1]).swapaxes(2, 3)
            tokens = tokens.reshape(tokens.shape[0], side * side, -1)
        vectors = self._projector(params["projector"], tokens.astype(self.decoder.dtype))
        return vectors.reshape(batch, images, *vectors.shape[1:])

    def embed(self, variables: Variables, batch: Batch, *, train: bool = False) -> Float[Array, "batch time dim"]:
        """The vectors of tokens, and of the images at their places."""
        text = self.decoder.embed(variables["params"]["decoder"], batch["text"])
        vectors = self.image_vectors(variables, batch["image"], train=train)
        ids, count = batch["text_image_ids"], vectors.shape[2]
        vectors = vectors.reshape(vectors.shape[0], -1, vectors.shape[-1])
        if self.tiles is None:
            return place(text, vectors, (ids - 1) * count + within_segments(ids), ids)
        index, is_end = tile_places(ids, batch["tile_grids"], batch["tile_boxes"], self.side)
        text = jnp.where(is_end[..., None], variables["params"]["image_newline"].astype(text.dtype), text)
        return place(text, vectors, index, jnp.where(is_end, 0, ids))


def tile_places(
    image_ids: Int[Array, "batch time"],
    grids: Int[Array, "batch count 2"],
    boxes: Int[Array, "batch count 4"],
    side: int,
) -> tuple[Int[Array, "batch time"], Bool[Array, "batch time"]]:
    """Which of the tokens of a row's tiles stands at each place of an image, and which places end a row of it.

    The tiles of images follow one another, of each its thumbnail and then the grid's, row by row. So do the places: all
    tokens of the thumbnail, then for each row of the box its tokens, from whatever tile, and an end.

    Args:
      image_ids: n at the places of a row's n-th image, from 1; 0 elsewhere.
      grids: rows and columns of each image's tiles; 0, 0 where there is none.
      boxes: x0, y0, x1, y1 of each image on the tokens of its grid.
      side: rows and columns of the tokens of a tile.
    """
    own = lambda x: jnp.take_along_axis(x, jnp.maximum(image_ids - 1, 0)[..., None], axis=1)
    tiles = 1 + grids[..., :1] * grids[..., 1:]
    first = own(jnp.cumsum(tiles, axis=1) - tiles)[..., 0]
    x0, y0, x1, _ = jnp.moveaxis(own(boxes), -1, 0)
    offset = within_segments(image_ids)
    row, column = jnp.divmod(offset - side**2, x1 - x0 + 1)
    y, x = y0 + row, x0 + column
    tile = first + 1 + y // side * own(grids)[..., 1] + x // side
    of_grid = offset >= side**2
    token = jnp.where(of_grid, tile * side**2 + y % side * side + x % side, first * side**2 + offset)
    return token, (image_ids > 0) & of_grid & (x == x1)
