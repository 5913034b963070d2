"""Captioning alone: each token from the image and those before it, or all at once from the image (CapPa)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.models.captioner import Captions
from vlm_jax.nn import shard
from vlm_jax.tasks import captions, next_token
from vlm_jax.tasks.base import Batch, Context, Variables


@dataclasses.dataclass(frozen=True)
class ImageToText:
    """The mean cross-entropy of the tokens of captions. The first is given, and padding does not count.

    Attributes:
      model: `Captioner`, or another that has its methods.
      parallel: share of the examples whose tokens are all predicted at once, from the image alone (Tschannen et al.
        2023, arXiv:2306.07915, section 3: 0.75); drawn anew at every step.
      z_loss: see `losses.cross_entropy`.
      bos_id: the tokenizer's, with which captions are begun that have no other prompt.
      sampling: how captions are written; they stop at the decoder's end token unless it says otherwise.
    """

    model: Captions
    parallel: float = 0.0
    z_loss: float = 0.0
    bos_id: int | None = None
    sampling: Sampling = Sampling()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if not 0 <= self.parallel <= 1:
            raise UserError(f"parallel={self.parallel} is a share of the examples, from 0 to 1.")
        if self.parallel and not getattr(self.model.decoder, "mask_token", False):
            raise UserError(f"parallel={self.parallel} needs a MASK token: set model.decoder.mask_token=True.")
        if self.z_loss < 0:
            raise UserError(f"z_loss={self.z_loss} must be at least 0.")

    def check_run(self, experiment: Any) -> None:
        """See `Task`."""
        captions.check_begin(experiment)

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return self.model.stacks

    def init(self, key: Key[Array, ""]) -> Variables:
        return self.model.init(key)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what the task reads."""
        size, length = self.model.image.image_size, self.model.decoder.length
        return {
            "image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
        }

    def labels(self, text: Int[Array, "batch time"]) -> Int[Array, "batch time_less_one"]:
        """The token after each, where it is not padding."""
        return jnp.where(self.model.decoder.real(text), text, next_token.IGNORED)[:, 1:]

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """The mean over the tokens of the global batch; `aux["weight"]` says how many these are."""
        keys = ctx.row_keys(batch["text"].shape[0])
        image_tokens = self.model.encode_image(variables, batch["image"], train=ctx.train, key=keys)[1]["tokens"]
        options = {}
        if self.parallel and ctx.train:
            draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1), self.parallel)
            options["hidden"] = jnp.repeat(jax.vmap(draw)(keys)[:, None], batch["text"].shape[1] - 1, axis=1)
        hidden = self.model.decode(variables, image_tokens, batch["text"][:, :-1], **options)
        labels = self.labels(batch["text"])
        loss = next_token.mean_loss(hidden, self.model.head(variables), labels, ctx.mesh, z_loss=self.z_loss)
        tokens = (labels != next_token.IGNORED).sum(dtype=jnp.float32)
        metrics = {"caption_loss": loss, "target_tokens": tokens}
        return loss, {"metrics": metrics, "state": variables.get("state", {}), "weight": tokens}

    def constrain(self, params: Any) -> Any:
        """The parameters, which have no bounds."""
        return params

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """`image_embedding(uint8 [n, H, W, 3])`, unit-norm f32 [n, dim], for probes; `log_likelihood(images, int32 [n,
        L])`, f32 [n]: the sum over a caption's tokens, but for the first and padding, of the logarithm of their
        probability; and `generate`, see `captions.writer`.
        """
        mesh, begin = shard.mesh_of(variables), None if self.bos_id is None else (self.bos_id,)
        return {
            "image_embedding": functools.partial(_image_embedding, self.model, mesh, variables),
            "log_likelihood": functools.partial(_log_likelihood, self, mesh, variables),
            "generate": captions.writer(self.model, self.model.decoder, self.sampling, begin, variables),
        }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _image_embedding(model: Any, mesh: Mesh | None, variables: Variables, image: Array) -> Float[Array, "n dim"]:
    with shard.under(mesh):
        return model.encode_image(variables, image)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(
    task: ImageToText, mesh: Mesh | None, variables: Variables, image: Array, text: Int[Array, "n time"]
) -> Float[Array, " n"]:
    with shard.under(mesh):
        tokens = task.model.encode_image(variables, image)[1]["tokens"]
        hidden = task.model.decode(variables, tokens, text[:, :-1])
        return next_token.log_likelihood(hidden, task.model.head(variables), task.labels(text))
