"""Predicting the next token, of texts and of conversations about images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from vlm_jax.data.conversation_images import FixedImages, NativeImages, TiledImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling, generate
from vlm_jax.nn import shard
from vlm_jax.tasks import next_token
from vlm_jax.tasks.base import Batch, Context, Variables


class Writer(Protocol):
    """What the task asks of a model."""

    vocab_size: int
    length: int
    stacks: dict[str, int]

    def init(self, key: Key[Array, ""]) -> Variables: ...

    def check_images(self, images: FixedImages | TiledImages | NativeImages | None) -> None:
        """Raises UserError where it does not take the images that rows hold."""

    def batch_spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What it reads of a batch, of rows of `length` tokens."""

    def hidden(
        self, variables: Variables, batch: Batch, *, train: bool = False, key: Array | None = None
    ) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
        """What the head is applied to, and aux: `losses` are (weight, loss) by name, beside that of the tokens."""

    def start(
        self, variables: Variables, batch: Batch, places: int
    ) -> tuple[Float[Array, "batch vocab"], dict[str, Any]]:
        """The logits after each prompt, and a cache with room for `places` tokens."""

    def extend(
        self, variables: Variables, tokens: Int[Array, " batch"], cache: dict[str, Any]
    ) -> tuple[Float[Array, "batch vocab"], dict[str, Any]]: ...

    def head(self, variables: Variables) -> Float[Array, "vocab dim"]: ...


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """The mean cross-entropy of the tokens that `target_mask` names, each from those before it in its segment.

    Attributes:
      model: a language model, alone or with images; see `Writer`.
      length: tokens of a row, at most the model's.
      z_loss: see `losses.cross_entropy`.
      sampling: how `predict["answer"]` writes.
      end_id, pad_id: what ends an answer, and what fills rows.
      conversations: how rows were written, where they are conversations; the model must take what they hold.
    """

    model: Any
    length: int = 2048
    z_loss: float = 0.0
    sampling: Sampling = Sampling()
    end_id: int | None = None
    pad_id: int = 0
    conversations: Conversations | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError where fields do not fit each other."""
        if not 2 <= self.length <= self.model.length:
            raise UserError(
                f"length={self.length}: the model takes sequences of 2 to {self.model.length} tokens (model.length)."
            )
        if self.z_loss < 0:
            raise UserError(f"z_loss={self.z_loss} must be at least 0.")
        if self.conversations is not None:
            self.model.check_images(self.conversations.images)

    @property
    def stacks(self) -> dict[str, int]:
        """Names of the scanned groups of layers and their depth."""
        return self.model.stacks

    def init(self, key: Key[Array, ""]) -> Variables:
        return self.model.init(key)

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what the task reads."""
        rows = (batch_size, self.length)
        own = {"text": jnp.int32, "text_segment_ids": jnp.int32, "target_mask": jnp.bool_}
        spec = {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in own.items()}
        return spec | self.model.batch_spec(batch_size, self.length)

    def labels(self, batch: Batch) -> Int[Array, "batch time"]:
        """The token after each where it is to be predicted; a sequence's first token is not."""
        segments = batch["text_segment_ids"]
        after = lambda x: jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
        counts = after(batch["target_mask"]) & (after(segments) == segments) & (segments > 0)
        return jnp.where(counts, after(batch["text"]), next_token.IGNORED)

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """The mean over the tokens of the global batch; `aux["weight"]` says what these count together."""
        hidden, aux = self.model.hidden(variables, batch, train=ctx.train, key=ctx.row_keys(batch["text"].shape[0]))
        labels = self.labels(batch)
        weights = self.weights(labels)
        loss, each = next_token.weighted_loss(
            hidden, self.model.head(variables), labels, weights, ctx.mesh, z_loss=self.z_loss
        )
        metrics = self.parts_of(loss, each, labels)
        for name, (weight, value) in aux.get("losses", {}).items():
            loss += weight * value
            metrics[f"{name}_loss"] = value
        tokens = (labels != next_token.IGNORED).sum(dtype=jnp.float32)
        metrics["target_tokens"] = tokens
        return loss, {"metrics": metrics, "state": variables.get("state", {}), "weight": weights.sum()}

    def weights(self, labels: Int[Array, "batch time"]) -> Float[Array, "batch time"]:
        """What each token counts in the mean: the same, and those without a label nothing."""
        return (labels != next_token.IGNORED).astype(jnp.float32)

    def parts_of(
        self, loss: Float[Array, ""], each: Float[Array, "batch time"], labels: Int[Array, "batch time"]
    ) -> dict[str, Array]:
        """Metrics of the loss of all tokens, and of each."""
        return {"text_loss": loss}

    def constrain(self, params: Any) -> Any:
        """The parameters, which have no bounds."""
        return params

    def predict(self, variables: Variables) -> dict[str, Callable]:
        """`answer(batch, key=None)`, int32 [n, max_tokens]: what the model writes after each row's tokens, up to its
        end token, then padding; `score(batch)`, f32 [n]: the log-probability of the tokens that `target_mask` names.

        Batches are those of training, a prompt a row, padded on the right.
        """
        mesh = shard.mesh_of(variables)
        return {
            "answer": functools.partial(_answer, self, mesh, variables),
            "score": functools.partial(_score, self, mesh, variables),
        }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(
    task: LanguageModeling,
    mesh: Mesh | None,
    variables: Variables,
    batch: Mapping[str, Array],
    key: Array | None = None,
) -> Int[Array, "n max_tokens"]:
    stop = task.sampling.stop if task.end_id is None else (*task.sampling.stop, task.end_id)
    sampling = dataclasses.replace(task.sampling, stop=stop, pad=task.pad_id)
    places = batch["text"].shape[1] + sampling.max_tokens
    if places > task.model.length:
        raise UserError(
            f"prompts of {batch['text'].shape[1]} tokens and answers of max_tokens={sampling.max_tokens}: the model's "
            f"length is {task.model.length}."
        )
    with shard.under(mesh):
        logits, cache = task.model.start(variables, batch, places)
        return generate(functools.partial(task.model.extend, variables), logits, cache, sampling, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    task: LanguageModeling, mesh: Mesh | None, variables: Variables, batch: Mapping[str, Array]
) -> Float[Array, " n"]:
    with shard.under(mesh):
        hidden, _ = task.model.hidden(variables, batch)
        return next_token.log_likelihood(hidden, task.model.head(variables), task.labels(batch))
