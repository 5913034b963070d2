"""Models that turn images into tokens and back."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.checkpoint.fingerprint import fingerprint as fingerprints
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.storage import content_hash
from vlm_jax.errors import UserError
from vlm_jax.library.batches import Batches, Images, listed, read
from vlm_jax.tasks.autoencoding import Autoencoding


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AutoencoderModel:
    """An autoencoder on its devices. Lists may have any length: they go through in batches of a few fixed sizes.

    Attributes:
      source: where it came from. step: of the checkpoint.
      task, variables: the pure functions, and what they take, on the devices.
      image: the preprocessing of images.
      mesh: of the devices.
    """

    source: str
    step: int | None
    task: Autoencoding
    variables: dict[str, Any]
    image: ImageTransform
    mesh: Mesh
    batch_size: int

    def __post_init__(self):
        """Raises UserError where the arrays are not the model's, such as a codebook of another size."""
        wanted = tree.flatten(jax.eval_shape(self.task.init, jax.random.key(0)))
        given = tree.flatten(self.variables)
        for name in [*wanted, *given]:
            ours, theirs = (list(side[name].shape) if name in side else "none" for side in (wanted, given))
            if ours != theirs:
                raise UserError(f"{self.source}: its checkpoint's {name} is {theirs}, that of its config {ours}.")

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        grid, codes = self.task.model.grid, self.task.model.bottleneck.vocab_size
        latents = "latents" if codes is None else f"tokens of {codes:,}"
        return f"<autoencoder of {self.source}: {size:,} parameters, {grid} x {grid} {latents} an image>"

    @property
    def params(self) -> dict[str, Any]:
        """Nested dicts of f32 numpy arrays under per-layer names, as on disk."""
        whole = jax.tree.map(lambda leaf: meshes.gather(leaf, self.mesh), self.variables["params"])
        return tree.unstack(whole, self.task.stacks)

    @property
    def vocab_size(self) -> int | None:
        """Tokens that there are; None where latents are numbers."""
        return self.task.model.bottleneck.vocab_size

    @functools.cached_property
    def predict(self) -> dict[str, Callable]:
        """Jitted functions by name, as evaluators take them; see `tasks.autoencoding`."""
        return self.task.predict(self.variables)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever changes tokens: the model, its arrays, the preprocessing."""
        return content_hash(repr(self.task.model), repr(self.image), json.dumps(fingerprints(self.variables)))

    def encode_tokens(self, images: Images, *, preprocessed: bool = False) -> Int32[np.ndarray, "n rows cols *stages"]:
        """The tokens of pictures, row by row; a residual quantiser has several for each place.

        Args:
          images: one picture or several, of any sizes: `PIL.Image`, path, encoded bytes, or uint8 array.
          preprocessed: they are uint8 [n, height, width, 3] as `image` gives them, of any size that the stride divides.

        Raises:
          UserError: it names the picture that cannot be read; or the latents are numbers.
        """
        return self._run("tokens", listed(images), np.stack if preprocessed else self._read)

    def decode_tokens(self, tokens: Int32[np.ndarray, "n rows cols *stages"]) -> UInt8[np.ndarray, "n height width 3"]:
        """The images that tokens stand for, as `encode_tokens` gives them; grids may have another size.

        Raises:
          UserError: other shapes or types, tokens out of range; or the latents are numbers.
        """
        self._needs_tokens()
        tokens, stages = np.asarray(tokens), self.task.model.bottleneck.stages
        wanted = "[n, rows, cols]" if stages is None else f"[n, rows, cols, {stages}]"
        if tokens.ndim != 3 + (stages is not None) or not np.issubdtype(tokens.dtype, np.integer):
            raise UserError(f"decode_tokens takes whole numbers {wanted}, not {tokens.dtype} {list(tokens.shape)}.")
        if stages is not None and tokens.shape[3] != stages:
            raise UserError(f"decode_tokens takes whole numbers {wanted}, not {tokens.dtype} {list(tokens.shape)}.")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise UserError(f"tokens {tokens.min()} to {tokens.max()}: the model has 0 to {self.vocab_size - 1}.")
        return self._run("from_tokens", tokens.astype(np.int32), lambda part: part)

    def reconstruct(self, images: Images) -> UInt8[np.ndarray, "n height width 3"]:
        """What is decoded of the latents of pictures, as for `encode_tokens`."""
        return self._run("reconstruct", listed(images), self._read)

    def _needs_tokens(self) -> None:
        if self.vocab_size is None:
            raise UserError(f"{self.source} has no tokens: its latents are numbers; `reconstruct` decodes them.")

    def _read(self, pictures: Sequence) -> np.ndarray:
        return read(self.image, pictures)

    def _run(self, name: str, items: Sequence, prepare: Callable) -> np.ndarray:
        if name != "reconstruct":
            self._needs_tokens()
        if not len(items):
            raise UserError(f"{name}: no images were given.")
        function = self.predict[name]
        return Batches(self.mesh, self.batch_size).run(lambda batch, start: function(batch), items, prepare)
