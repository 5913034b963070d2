"""Models for which images are tokens like words: they write about images, and draw images of captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.cards import Card
from vlm_jax.library import asking
from vlm_jax.library.batches import Batches, Images, is_several, listed, read
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.tasks.early_fusion import EarlyFusion


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FusedModel:
    """A decoder of texts and image tokens on its devices. Lists are taken in batches of a few fixed shapes.

    Attributes:
      source: where it came from. step: of the checkpoint.
      task, variables: the pure functions, and what they take, on the devices.
      image, text: the preprocessing.
      mesh: of the devices.
    """

    source: str
    step: int | None
    task: EarlyFusion
    variables: dict[str, Any]
    image: ImageTransform
    text: Text
    mesh: Mesh
    batch_size: int

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        ids, grid = self.fusion.vocabulary, self.fusion.grid
        return (
            f"<decoder of {self.source}: {size:,} parameters, texts and images of {grid} x {grid} codes of {ids.codes}>"
        )

    @property
    def network(self) -> Chameleon:
        """The decoder, and the tokenizer of images where there is one."""
        return self.task.model

    @property
    def fusion(self) -> Fusion:
        """How texts and images become tokens."""
        return self.task.fusion

    @property
    def params(self) -> dict[str, Any]:
        """Nested dicts of f32 numpy arrays under per-layer names, as on disk."""
        whole = jax.tree.map(lambda leaf: meshes.gather(leaf, self.mesh), self.variables["params"])
        return tree.unstack(whole, self.task.stacks)

    @functools.cached_property
    def predict(self) -> dict[str, Callable]:
        """Jitted functions by name, as evaluators take them; see `tasks.early_fusion`."""
        return self.task.predict(self.variables)

    def protocol(self, name: str | None = None) -> tuple[Card | None, list[str]]:
        """None: protocol cards are about embeddings. Raises UserError where one is asked for."""
        if name is not None:
            raise UserError(f"protocol card {name!r}: {self.source} embeds nothing, which is what cards are about.")
        return None, []

    def generate(self, image: Images, *, seed: int = 0, **options: Any) -> str | list[str]:
        """What the model writes about a picture, or a list of it for several.

        Args:
          image: a picture or several, as `Model.encode_image` takes them.
          seed: of what is drawn at a temperature.
          options: `max_tokens`, `temperature`, `top_k`, `top_p`, `beams`, `length_penalty`, see `generate.Sampling`;
            those of the run unless given.

        Raises:
          UserError: unreadable pictures, options that do not fit, or there is no tokenizer of images.
        """
        out = self.describe(self.encode_tokens(image), seed=seed, **options)
        return out if is_several(image) else out[0]

    def describe(self, codes: Int32[np.ndarray, "n codes"], *, seed: int = 0, **options: Any) -> list[str]:
        """The same for images of which codes are given, as `encode_tokens` gives them, or flat. Raises UserError."""
        codes = self._checked(codes)
        sampling = asking.sampling(self.task.sampling, options)
        task = dataclasses.replace(self.task, sampling=sampling)
        tokens = self._run(task, "describe", codes, lambda part: part, sampling.temperature, seed)
        return asking.decoded(self.text, tokens, (*sampling.stop, self.task.end_id))

    def draw(
        self, captions: str | Sequence[str], *, guidance: float | None = None, seed: int = 0, **options: Any
    ) -> UInt8[np.ndarray, "n height width 3"]:
        """An image for each caption.

        Args:
          captions: one or several.
          guidance: how much of what the caption changes is added, see `generate.guided`; 1 for none, and the run's
            unless given.
          seed: of what is drawn.
          options: `temperature`, `top_k`, `top_p`, see `generate.Sampling`; those of the run unless given.

        Raises:
          UserError: options that do not fit, captions that are too long, or there is no tokenizer of images.
        """
        self._predicted(self.task, "from_tokens")  # refused before anything is drawn
        return self.decode_tokens(self.draw_tokens(captions, guidance=guidance, seed=seed, **options))

    def draw_tokens(
        self, captions: str | Sequence[str], *, guidance: float | None = None, seed: int = 0, **options: Any
    ) -> Int32[np.ndarray, "n rows cols"]:
        """The codes of an image for each caption; see `draw`."""
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions:
            raise UserError("draw: no captions were given.")
        if unknown := {"max_tokens", "beams", "length_penalty"} & options.keys():
            raise UserError(f"draw has no option {sorted(unknown)[0]!r}: an image has as many tokens as it has.")
        drawing = asking.sampling(self.task.drawing, options)
        guidance = self.task.guidance if guidance is None else float(guidance)
        task = dataclasses.replace(self.task, drawing=drawing, guidance=guidance)
        prepare = lambda part: self.fusion.prompts(part, self.text)
        codes = self._run(task, "draw_codes", captions, prepare, drawing.temperature, seed)
        return codes.reshape(len(captions), self.fusion.grid, self.fusion.grid)

    def encode_tokens(self, images: Images) -> Int32[np.ndarray, "n rows cols"]:
        """The codes of pictures. Raises UserError: it names the one that cannot be read; there is no tokenizer."""
        pictures = listed(images)
        if not len(pictures):
            raise UserError("encode_tokens: no images were given.")
        codes = self._run(self.task, "tokens", pictures, lambda part: read(self.image, part))
        return codes.reshape(len(pictures), self.fusion.grid, self.fusion.grid)

    def decode_tokens(self, codes: Int32[np.ndarray, "n rows cols"]) -> UInt8[np.ndarray, "n height width 3"]:
        """The images of codes. Raises UserError for codes that there are not; or there is no tokenizer."""
        return self._run(self.task, "from_tokens", self._checked(codes), lambda part: part)

    def _checked(self, codes: Any) -> Int32[np.ndarray, "n codes"]:
        ids, count = self.fusion.vocabulary, self.fusion.image_tokens
        try:
            codes = np.asarray(codes)
        except ValueError:  # of lists
            raise UserError(f"codes are whole numbers [n, {count}], not lists of unequal length.") from None
        if codes.shape[:1] == (0,):
            raise UserError("no codes were given.")
        if codes.ndim < 2 or codes[0].size != count or not np.issubdtype(codes.dtype, np.integer):
            raise UserError(f"codes are whole numbers [n, {count}], not {codes.dtype} {list(codes.shape)}.")
        if not 0 <= codes.min() <= codes.max() < ids.codes:
            raise UserError(f"codes {codes.min()} to {codes.max()}: the model has 0 to {ids.codes - 1}.")
        return codes.reshape(len(codes), -1).astype(np.int32)

    def _run(
        self, task: EarlyFusion, name: str, items: Sequence, prepare: Callable, temperature: float = 0.0, seed: int = 0
    ) -> np.ndarray:
        predict = self._predicted(task, name)

        def one(batch: Any, start: int) -> jax.Array:
            if not temperature:
                return predict(batch)
            numbers = start + jnp.arange(jax.tree.leaves(batch)[0].shape[0])
            return predict(batch, jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers))

        return Batches(self.mesh, self.batch_size).run(one, items, prepare)

    def _predicted(self, task: EarlyFusion, name: str) -> Callable:
        """A function of the task. Raises UserError where it needs a tokenizer of images and there is none."""
        found = task.predict(self.variables)
        if name not in found:
            raise UserError(
                f"{self.source} was trained on image codes and has no tokenizer of images, which makes them."
            )
        return found[name]
