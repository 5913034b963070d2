"""EVE (Diao et al. 2024, arXiv:2406.11832): a decoder that sees images without an encoder, and learns from one; and
EVEv2 (Diao et al. 2025, arXiv:2502.06788), which learns from none."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.errors import UserError
from vlm_jax.models.multimodal import Batch, MultimodalDecoder, Variables, native, place, places, same
from vlm_jax.models.tower import check, stacks_of
from vlm_jax.models.two_tower import normalize, normalize_patches
from vlm_jax.models.vit import ViT
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.patch_layers import PatchAligning, PatchConvolutions, PatchEmbedding, pool_to, pooled_places

EMBEDDINGS = {"attention": PatchEmbedding, "convolutions": PatchConvolutions}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The encoder whose features a decoder's are aligned with; its parameters are `teacher/...`, to be frozen.

    Attributes:
      image: the encoder. layer: whose output is taken, as in `llava.Llava`.
      interval: of the decoder's layers, every so many from the last one down are tapped, the input among them.
      weight: of the loss, 1 - cosine. num_heads: of the aligning layer.
      image_mean, image_std: of its pixels in [0, 1].
    """

    image: ViT = ViT(size="L", patch_size=14, image_size=336, pool="cls", out_dim=None)
    layer: int | None = -2
    interval: int = 4
    weight: float = 1.0
    num_heads: int = 8
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def features(self, params: dict, image: Array) -> Float[Array, "batch images side side dim"]:
        """Of uint8 images [batch, images, height, width, 3]; no gradient goes through them."""
        flat = normalize(image.reshape(-1, *image.shape[2:]), self.image_mean, self.image_std)
        tokens = self.image.patch_features(params, flat, self.layer)
        tokens = tokens.reshape(*image.shape[:2], self.image.grid, self.image.grid, tokens.shape[-1])
        return jax.lax.stop_gradient(tokens.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Eve(MultimodalDecoder):
    """The patch embedding layer in front of a decoder, and in training the patch aligning layer behind it.

    EVEv2 is `embedding="convolutions"` without a teacher, and `decoder.modalities=2`.

    An image of `rows` x `columns` patches takes `1 + rows / 2 * (columns / 2 + 1)` places: CLS, and a token for 2 x 2
    patches, with the split token after each row.

    Parameters: `embedding/...`, `decoder/...`; with a teacher also `aligning/...` and `teacher/...`.

    Attributes (besides those of `MultimodalDecoder`):
      patch_size: side of a patch in pixels. merge: patches along a side of what becomes a token.
      patches, images: of a row, at most.
      embedding: "attention" or "convolutions"; `nn.patch_layers.PatchEmbedding` and `PatchConvolutions`.
      width, num_heads: of the patch embedding layer; convolutions have no heads.
      teacher: None leaves the alignment out.
      image_mean, image_std: of pixels in [0, 1]; uint8 patches are normalised with them on the device.
    """

    patch_size: int = 14
    merge: int = 2
    patches: int = 2304
    images: int = 1
    embedding: str = "attention"
    width: int = 1024
    num_heads: int = 8
    teacher: Teacher | None = None
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        for field in ("patch_size", "merge", "patches", "images", "width", "num_heads"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} must be at least 1.")
        if self.patches % self.merge**2:
            raise UserError(f"patches={self.patches} is no multiple of merge={self.merge} squared.")
        check("embedding", self.embedding, EMBEDDINGS)
        if self.embedding == "attention" and self.width % self.num_heads:
            raise UserError(f"width={self.width} is not divisible by num_heads={self.num_heads}; set both.")
        if self.teacher is not None and len(self.aligned_taps) < 2:
            raise UserError(
                f"teacher.interval={self.teacher.interval}: at least two of the decoder's layers are to be aligned; "
                f"it has {self.decoder.geometry.depth}."
            )

    @property
    def aligned_taps(self) -> tuple[str, ...]:
        """Names of the decoder's activations that are aligned, from its output down to its input."""
        names = ("embed", *self.decoder.tap_names[1:-2], "ln_post")  # the last block's output is normed
        return names[:: -self.teacher.interval]

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return super().stacks | ({} if self.teacher is None else stacks_of(teacher=self.teacher.image))

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        c, width = self, self.decoder.geometry.width
        dtype = {"dtype": self.decoder.dtype}
        sizes = (3 * c.patch_size**2, c.width, width, *((c.num_heads,) if c.embedding == "attention" else ()), c.merge)
        parts = {"embedding": Functional(EMBEDDINGS[c.embedding], *sizes, **dtype), "decoder": self.decoder}
        if self.teacher is not None:
            t = self.teacher
            sizes = (width, t.image.geometry.width, len(self.aligned_taps), t.num_heads)
            parts |= {"aligning": Functional(PatchAligning, *sizes, **dtype), "teacher": t.image}
        return parts

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        keys = jax.random.split(key, len(self._parts))
        return {"params": {name: part.init(k) for (name, part), k in zip(self._parts.items(), keys)}}

    def check_images(self, images: Any) -> None:
        """Raises UserError where the data has patches of another kind, or no view for the teacher."""
        native(images, self.patch_size, self.merge, True, self.patches, self.images)
        same("NativeImages.view", images.view, None if self.teacher is None else self.teacher.image.image_size)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """`patches` uint8 [batch, patches, pixels * 3] of all images of a row, their `image_grids`, `text_image_ids`;
        with a teacher `image`, the same images as it sees them."""
        spec = {
            "patches": ((self.patches, 3 * self.patch_size**2), jnp.uint8),
            "image_grids": ((self.images, 2), jnp.int32),
            "text_image_ids": ((length,), jnp.int32),
        }
        if self.teacher is not None:
            size = self.teacher.image.image_size
            spec["image"] = ((self.images, size, size, 3), jnp.uint8)
        return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}

    def embed(self, variables: Variables, batch: Batch, *, train: bool = False) -> Float[Array, "batch time dim"]:
        """The vectors of tokens, and those of the patch embedding layer at their places."""
        params, patches, grids = variables["params"], batch["patches"], batch["image_grids"]
        patches = normalize_patches(patches, self.image_mean, self.image_std)
        vectors = self._parts["embedding"](params["embedding"], patches, grids)
        ids = batch["text_image_ids"]
        where = places(ids, grids // self.merge, cls=True)
        pooled = self.patches // self.merge**2
        index = jnp.where(where.is_cls, pooled + ids - 1, where.patch)
        index = jnp.where(where.is_end, pooled + self.images, index)
        text = self.decoder.embed(params["decoder"], batch["text"])
        return place(text, vectors, index, ids)

    def hidden(
        self, variables: Variables, batch: Batch, *, train: bool = False, key: Array | None = None
    ) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
        """What the head is applied to, and in training the loss of the alignment."""
        x = self.embed(variables, batch, train=train)
        params, aligned = variables["params"], train and self.teacher is not None
        taps = self.aligned_taps if aligned else ()
        image = self.at_images(batch)
        hidden, aux = self.decoder.apply(params["decoder"], x, batch["text_segment_ids"], image=image, taps=taps)
        if aligned:
            aux["losses"] = {"alignment": (self.teacher.weight, self.alignment(variables, batch, aux["taps"]))}
        return hidden, aux

    def alignment(
        self, variables: Variables, batch: Batch, taps: dict[str, Float[Array, "batch time dim"]]
    ) -> Float[Array, ""]:
        """1 - the cosine of the aligning layer's features and the teacher's, averaged over cells, then over images."""
        params, grids, ids = variables["params"], batch["image_grids"] // self.merge, batch["text_image_ids"]
        image, row, column, _ = pooled_places(grids, self.patches // self.merge**2)
        first = jnp.argmax(ids[:, None, :] == 1 + jnp.arange(self.images)[:, None], axis=2)
        columns = jnp.take_along_axis(grids[..., 1], jnp.maximum(image - 1, 0), axis=1)
        at = jnp.take_along_axis(first, jnp.maximum(image - 1, 0), axis=1) + 1 + row * (columns + 1) + column
        at = jnp.where(image > 0, at, 0)
        features = jnp.stack([taps[name] for name in self.aligned_taps], axis=2)
        features = jnp.take_along_axis(features, at[..., None, None], axis=1)
        side = self.teacher.image.grid
        cells = pool_to(features, grids, side).reshape(-1, side**2, *features.shape[2:])
        ours = self._parts["aligning"](params["aligning"], cells).astype(jnp.float32)
        theirs = self.teacher.features(params["teacher"], batch["image"]).reshape(ours.shape)
        norm = lambda x: jnp.sqrt(jnp.maximum((x**2).sum(-1), 1e-16))  # has a gradient where a row has no image
        cosine = (ours * theirs).sum(-1) / (norm(ours) * norm(theirs))
        there = (grids[..., 0] > 0).reshape(-1)
        return jnp.where(there, 1 - cosine.mean(axis=1), 0).sum() / jnp.maximum(there.sum(), 1)
