"""What decoders that see images share: vectors of images put among those of a text, prompts, and caches."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.models.decoder import Cache, LanguageModel
from vlm_jax.models.tower import stacks_of
from vlm_jax.nn.functional import Params
from vlm_jax.nn.positions import within_segments

Batch = Mapping[str, Array]
Variables = dict[str, Any]


def place(
    text: Float[Array, "batch time dim"],
    vectors: Float[Array, "batch count dim"],
    index: Int[Array, "batch time"],
    image_ids: Int[Array, "batch time"],
) -> Float[Array, "batch time dim"]:
    """`text`, and where `image_ids` is not 0 the vector of the row that `index` names."""
    index = jnp.clip(index, 0, vectors.shape[1] - 1)
    chosen = jnp.take_along_axis(vectors, index[..., None], axis=1)
    return jnp.where(image_ids[..., None] > 0, chosen.astype(text.dtype), text)


def same(name: str, value: Any, wanted: Any) -> None:
    """Raises UserError where a field of the data is not what the model takes."""
    if value != wanted:
        raise UserError(f"{name}={value}: the model takes {wanted}; set both to one value.")


def native(images: Any, patch_size: int, merge: int, cls: bool, patches: int, count: int) -> None:
    """Raises UserError where `Conversations.images` are not `NativeImages` of these sizes."""
    wanted = {"patch_size": patch_size, "merge": merge, "cls": cls, "patches": patches, "count": count}
    if not hasattr(images, "patch_size"):
        raise UserError(f"Conversations.images={images}: the model takes NativeImages; bind them there.")
    for field, value in wanted.items():
        same(f"NativeImages.{field}", getattr(images, field), value)


class Places(NamedTuple):
    """Of each token at a place of an image that keeps its aspect ratio, what stands there.

    Attributes:
      patch: which of the row's vectors of patches, in the order of images, and row by row within one.
      is_cls, is_end: the place before an image's rows, and those after each row, which are no patch's.
    """

    patch: Int[Array, "batch time"]
    is_cls: Array
    is_end: Array


def places(image_ids: Int[Array, "batch time"], grids: Int[Array, "batch count 2"], *, cls: bool) -> Places:
    """Where the tokens of images stand that take a place for each patch, one after each row, and one for CLS in front.

    Args:
      image_ids: n at the places of a row's n-th image, from 1; 0 elsewhere.
      grids: rows and columns of each image, in patches as the decoder sees them.
    """
    own = jnp.take_along_axis(grids, jnp.maximum(image_ids - 1, 0)[..., None], axis=1)
    sizes = grids[..., 0] * grids[..., 1]
    begins = jnp.cumsum(sizes, axis=1) - sizes
    begin = jnp.take_along_axis(begins, jnp.maximum(image_ids - 1, 0), axis=1)
    offset = within_segments(image_ids) - cls
    columns = jnp.maximum(own[..., 1], 1)
    row, column = offset // (columns + 1), offset % (columns + 1)
    there = image_ids > 0
    is_cls = there & (offset < 0)
    is_end = there & ~is_cls & (column == columns)
    return Places(jnp.maximum(begin + row * columns + column, 0), is_cls, is_end)


@dataclasses.dataclass(frozen=True)
class MultimodalDecoder(abc.ABC):
    """A language model that takes images among its tokens. Subclasses say what vectors an image becomes.

    Parameters: `decoder/...`, and those of the subclass beside it.

    Attributes:
      decoder: the language model.
    """

    decoder: LanguageModel = LanguageModel()

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def length(self) -> int:
        return self.decoder.length

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return stacks_of(decoder=self.decoder)

    @abc.abstractmethod
    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""

    @abc.abstractmethod
    def check_images(self, images: Any) -> None:
        """Raises UserError where the model does not take `Conversations.images`."""

    @abc.abstractmethod
    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What the model reads of a batch beside `text` and `text_segment_ids`."""

    @abc.abstractmethod
    def embed(self, variables: Variables, batch: Batch, *, train: bool = False) -> Float[Array, "batch time dim"]:
        """The decoder's input: vectors of the tokens, and of images at their places."""

    def at_images(self, batch: Batch) -> Bool[Array, "batch time"] | None:
        """The tokens at places of images, where the decoder has weights for them."""
        divided = self.decoder.modalities == 2 and "text_image_ids" in batch
        return batch["text_image_ids"] > 0 if divided else None

    def complete(self, params: Params) -> Params:
        """Given parameters (per-layer names), and those that start as copies of them."""
        return params | {"decoder": self.decoder.complete(params["decoder"])} if "decoder" in params else params

    def hidden(
        self, variables: Variables, batch: Batch, *, train: bool = False, key: Array | None = None
    ) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
        """What the head is applied to, of each token."""
        x = self.embed(variables, batch, train=train)
        image = self.at_images(batch)
        return self.decoder.apply(variables["params"]["decoder"], x, batch["text_segment_ids"], image=image)

    def start(self, variables: Variables, batch: Batch, places: int) -> tuple[Float[Array, "batch vocab"], Cache]:
        """The logits after each prompt, one a row and padded on the right, and a cache of so many places."""
        params = variables["params"]["decoder"]
        cache = self.decoder.cache(batch["text"].shape[0], places)
        count = (batch["text_segment_ids"] > 0).sum(axis=1)
        image = self.at_images(batch)
        hidden, cache = self.decoder.extend(params, self.embed(variables, batch), cache, count, image=image)
        return self.decoder.logits(params, hidden), cache

    def extend(
        self, variables: Variables, tokens: Int[Array, " batch"], cache: Cache
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """The logits after one more token of each row, and the cache with it."""
        params = variables["params"]["decoder"]
        hidden, cache = self.decoder.extend(params, tokens[:, None], cache)
        return self.decoder.logits(params, hidden), cache

    def head(self, variables: Variables) -> Float[Array, "vocab dim"]:
        """One row for each token of the vocabulary, for `losses.cross_entropy`."""
        return self.decoder.head(variables["params"]["decoder"])


@dataclasses.dataclass(frozen=True)
class TextDecoder(MultimodalDecoder):
    """The language model alone, as `tasks.language_model` takes it."""

    def init(self, key: Array) -> Variables:
        """`{"params": ...}`: nested dicts of f32 arrays."""
        return {"params": {"decoder": self.decoder.init(key)}}

    def check_images(self, images: Any) -> None:
        """Raises UserError where there are any."""
        same("Conversations.images", images, None)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Nothing."""
        return {}

    def embed(self, variables: Variables, batch: Batch, *, train: bool = False) -> Float[Array, "batch time dim"]:
        """The vectors of the tokens."""
        return self.decoder.embed(variables["params"]["decoder"], batch["text"])
