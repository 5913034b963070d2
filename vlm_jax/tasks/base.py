"""What the trainer asks of an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Variables = Mapping[str, Any]
Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a loss may know beside variables and batch.

    Attributes:
      key: `fold_in(key(seed), step)`; see `row_keys`.
      rows: the row of the global batch that each example is, where they are not all of it in order.
      step, total_steps: updates done, updates in all.
      train: dropout and token dropping are on.
      mesh: the devices; a loss opens `shard_map` over its batch axes.
      ema: the moving average of the parameters, where one is kept.
    """

    key: Key[Array, ""]
    step: Int[Array, ""]
    total_steps: int
    mesh: jax.sharding.Mesh
    train: bool = True
    ema: Any = None
    rows: Int[Array, "batch"] | None = None

    def at(self, rows: Int[Array, "batch"]) -> Context:
        """The context of a microbatch of these rows."""
        return dataclasses.replace(self, rows=rows)

    def row_keys(self, count: int) -> Key[Array, "batch"]:
        """A key an example, by its row of the global batch: dropping does not depend on devices or microbatches."""
        rows = jnp.arange(count) if self.rows is None else self.rows
        return jax.vmap(jax.random.fold_in, (None, 0))(self.key, rows)


class Task(Protocol):
    """An objective: variables, loss, and what evaluators may call.

    It may also have `check_run(experiment)`, which raises UserError where the rest of a run does not suit it, before a
    device is touched.
    """

    @property
    def stacks(self) -> dict[str, int]:
        """Scanned groups of layers and their depth; see `vlm_jax.tree`."""

    def init(self, key: Key[Array, ""]) -> Variables: ...

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]: ...

    def loss(self, variables: Variables, batch: Batch, ctx: Context) -> tuple[Float[Array, ""], dict]:
        """The mean loss over the global batch, and aux with `metrics` (scalars) and `state`."""

    def constrain(self, params: Any) -> Any:
        """The parameters brought back into their bounds after an update."""

    def predict(self, variables: Variables) -> dict[str, Callable]: ...


def is_contrastive(task: Task) -> bool:
    """Whether the loss compares the examples of a batch with one another, so that microbatches change it."""
    return hasattr(task, "feature_loss")


def ring_group(task: Task, devices: int, batch_size: int) -> int:
    """Of the devices that a batch is split over, how many consecutive ones make a stop of the loss's ring.

    The mesh lays the devices out for it, see `vlm_jax.ring`; a task whose loss has such a ring says it as `group`.
    """
    return task.group(devices, batch_size) if hasattr(task, "group") else 1
