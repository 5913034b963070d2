"""One jitted update: gradients, accumulation over microbatches, a guard against non-finite values, EMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_jax import mesh as meshes
from vlm_jax.optim import merge
from vlm_jax.state import TrainState
from vlm_jax.tasks.base import Batch, Context, Task


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How an update is made.

    Attributes:
      total_steps: updates of the whole run.
      seed: of the random keys that losses get.
      microbatches: parts that the batch is worked through in; losses and gradients are their means.
      ema: decay of the moving average of the parameters; None keeps none.
    """

    total_steps: int
    seed: int = 0
    microbatches: int = 1
    ema: float | None = None


def make_train_step(
    task: Task, tx: optax.GradientTransformation, mesh: Mesh, options: StepOptions
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The update `(state, batch) -> (state, metrics)`; jit it with the state donated.

    An update whose loss or gradient is not finite changes nothing but `step` and is counted in `metrics["skipped"]`.
    """

    def loss_of(params, frozen, state, batch, key, step, ema) -> tuple[jax.Array, dict]:
        variables = {"params": merge(params, frozen), "state": state, "frozen": frozen}
        ctx = Context(key=key, step=step, total_steps=options.total_steps, mesh=mesh, ema=ema or None)
        return task.loss(variables, batch, ctx)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def update(train: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(options.seed), train.step)
        loss, metrics, state, grads = _accumulate(gradient, train, batch, key, options.microbatches, mesh)
        grad_norm = optax.global_norm(grads)
        updates, opt = tx.update(grads, train.opt, train.params)
        params = task.constrain(optax.apply_updates(train.params, updates))

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        params, opt, state = keep(params, train.params), keep(opt, train.opt), keep(state, train.state)
        ema = train.ema
        if options.ema is not None:
            # Early on the average follows closely, so that it does not remember the initial values.
            decay = jnp.minimum(options.ema, (1.0 + train.step) / (10.0 + train.step))
            ema = keep(jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params), ema)
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            "skipped": 1.0 - finite,
        }
        return train.replace(step=train.step + 1, params=params, opt=opt, state=state, ema=ema), metrics

    return update


def _accumulate(gradient, train: TrainState, batch: Batch, key, microbatches: int, mesh: Mesh):
    """(loss, metrics, state, gradients), means over the microbatches; the state is threaded through them in order."""
    if microbatches == 1:
        (loss, aux), grads = gradient(train.params, train.frozen, train.state, batch, key, train.step, train.ema)
        return loss, aux["metrics"], aux["state"], grads

    def one(state, numbered):
        index, part = numbered
        key_of_part = jax.random.fold_in(key, index)
        (loss, aux), grads = gradient(train.params, train.frozen, state, part, key_of_part, train.step, train.ema)
        return aux["state"], (loss, aux["metrics"], grads)

    def add(carry, numbered):
        state, sums = carry
        state, new = one(state, numbered)
        return (state, jax.tree.map(jnp.add, sums, new)), None

    parts = jax.tree.map(lambda x: split_rows(x, microbatches, mesh), dict(batch))
    numbers = jnp.arange(microbatches)
    shapes = jax.eval_shape(one, train.state, (numbers[0], jax.tree.map(lambda x: x[0], parts)))[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (state, sums), _ = jax.lax.scan(add, (train.state, zeros), (numbers, parts))
    loss, metrics, grads = jax.tree.map(lambda x: x / microbatches, sums)
    return loss, metrics, state, grads


def split_rows(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...]; part i takes rows i, i + parts, ...: no row changes device."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, PartitionSpec(None, meshes.BATCH_AXES)))


def variables_of(train: TrainState, weights: str = "raw") -> dict[str, Any]:
    """The variables that evaluators see: the parameters as trained, or their moving average (`ema`)."""
    params = train.ema if weights == "ema" else train.params
    return {"params": merge(params, train.frozen), "state": train.state, "frozen": train.frozen}
