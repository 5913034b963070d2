"""One jitted update: gradients, guards against those that would do harm, EMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_jax import accumulate
from vlm_jax.health import guards
from vlm_jax.health.guards import Guards
from vlm_jax.nn import shard
from vlm_jax.optim import merge
from vlm_jax.state import TrainState
from vlm_jax.tasks.base import Batch, Context, Task, is_contrastive


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How an update is made.

    Attributes:
      total_steps: updates of the whole run.
      seed: of the random keys that losses get.
      microbatches: parts that the batch is worked through in; see `vlm_jax.accumulate`.
      ema: decay of the moving average of the parameters; None keeps none.
      grad_dtype: gradients of matrices are summed over devices in it; "bfloat16" halves the messages.
      guards: against updates that would do harm.
    """

    total_steps: int
    seed: int = 0
    microbatches: int = 1
    ema: float | None = None
    grad_dtype: str = "float32"
    guards: Guards = Guards()


def make_gradients(task: Task, mesh: Mesh, options: StepOptions) -> Callable[[TrainState, Batch], accumulate.Gradients]:
    """What an update begins with: loss, metrics, new state and gradients of a batch."""

    def gradients(train: TrainState, batch: Batch) -> accumulate.Gradients:
        variables = lambda params, state: _variables(params, train.frozen, state)
        ctx = Context(
            key=jax.random.fold_in(jax.random.key(options.seed), train.step),
            step=train.step,
            total_steps=options.total_steps,
            mesh=mesh,
            ema=train.ema or None,
        )
        if options.microbatches == 1:
            return accumulate.whole(task, variables, train.params, train.state, batch, ctx)
        in_parts = accumulate.cached if is_contrastive(task) else accumulate.averaged
        return in_parts(task, variables, train.params, train.state, batch, ctx, options.microbatches)

    def under_mesh(train: TrainState, batch: Batch) -> accumulate.Gradients:
        with shard.under(mesh, options.grad_dtype):
            return gradients(train, batch)

    return under_mesh


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    options: StepOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The update `(state, batch) -> (state, metrics)`; jit it with the state donated.

    An update whose loss or gradient is not finite changes nothing but `step` and is counted in `metrics["skipped"]`;
    what else is done about harmful ones is for `options.guards` to say.
    """
    gradients = make_gradients(task, mesh, options)

    def update(train: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        with shard.under(mesh, options.grad_dtype):
            return _update(train, batch)

    def _update(train: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, metrics, state, grads, _ = gradients(train, batch)
        grad_norm = optax.global_norm(grads)
        judged = guards.judge(options.guards, train.guard, loss, grad_norm)
        if judged.scale is not None:
            grads = jax.tree.map(lambda g: g * judged.scale.astype(g.dtype), grads)
        updates, opt = tx.update(grads, train.opt, train.params)
        params = task.constrain(optax.apply_updates(train.params, updates))

        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(judged.good, n, o), new, old)
        params, opt, state = keep(params, train.params), keep(opt, train.opt), keep(state, train.state)
        ema = train.ema
        if options.ema is not None:
            # Early on the average follows closely, so that it does not remember the initial values.
            decay = jnp.minimum(options.ema, (1.0 + train.step) / (10.0 + train.step))
            ema = keep(jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params), ema)
        metrics = {
            **metrics,
            "loss": loss,
            "learning_rate": schedule(_updates(train.opt)),
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "update_norm": optax.global_norm(updates),
            **judged.metrics,
        }
        after = {"params": params, "opt": opt, "state": state, "ema": ema, "guard": judged.memory}
        return train.replace(step=train.step + 1, **after), metrics

    return update


def _updates(opt: Any) -> jax.Array:
    """Updates that the optimizer has made; a skipped step is none, so this may lag behind the step."""
    return optax.tree_utils.tree_get_all_with_path(opt, "count")[-1][1]


def _variables(params: Any, frozen: Any, state: Any) -> dict[str, Any]:
    return {"params": merge(params, frozen), "state": state, "frozen": frozen}


def variables_of(train: TrainState, weights: str = "raw") -> dict[str, Any]:
    """The variables that evaluators see: the parameters as trained, or their moving average (`ema`)."""
    params = train.ema if weights == "ema" else train.params
    return _variables(params, train.frozen, train.state)
