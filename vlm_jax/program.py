"""The program of a run: its update, jitted, and the FLOPs in it. Training runs it, and `vlm_jax.plan` compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vlm_jax import flops, startup
from vlm_jax.compiler_options import compiler_options
from vlm_jax.deterministic import proven
from vlm_jax.experiment import Experiment
from vlm_jax.optim import merge
from vlm_jax.step import StepOptions, make_train_step
from vlm_jax.tasks.base import Context


def options(experiment: Experiment) -> StepOptions:
    e = experiment
    return StepOptions(e.clock.total, e.seed, e.microbatches, e.ema, e.grad_dtype, e.guards)


def flags(plan: startup.Plan) -> dict[str, Any]:
    """What the compiler is given with the update."""
    experiment = plan.experiment
    return compiler_options(list(plan.mesh.devices.flat), experiment.compiler_options, experiment.deterministic)


def jitted_update(plan: startup.Plan) -> Callable:
    """`(state, batch) -> (state, metrics)`; the state is given up to the new one."""
    experiment = plan.experiment
    update = make_train_step(experiment.task, plan.tx, plan.schedule, plan.mesh, options(experiment))
    shardings = (plan.shardings, None)
    return jax.jit(update, donate_argnums=0, out_shardings=shardings, compiler_options=flags(plan) or None)


def update_of(plan: startup.Plan) -> Callable:
    """`jitted_update`; where the run is to be deterministic, one that proves it by its first step."""
    update = jitted_update(plan)
    return proven(update) if plan.experiment.deterministic else update


def model_flops(plan: startup.Plan) -> float:
    """Model FLOPs of the first step, by the convention of MFU: three times the forward pass."""
    experiment, state = plan.experiment, plan.abstract
    parts = experiment.microbatches

    def forward(params, frozen, state, ema, batch, key):
        variables = {"params": merge(params, frozen), "state": state, "frozen": frozen}
        ctx = Context(key=key, step=0, total_steps=experiment.clock.total, mesh=plan.mesh, ema=ema or None)
        return experiment.task.loss(variables, batch, ctx)

    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = experiment.task.batch_spec(experiment.batch_size // parts)
    return 3.0 * parts * flops.count(forward, state.params, state.frozen, state.state, state.ema, batch, key)
