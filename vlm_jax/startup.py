"""From an experiment to a state on devices: abstract first, then restored or initialised where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlm_jax import mesh as meshes
from vlm_jax import warm_start
from vlm_jax.checkpoint import Store
from vlm_jax.errors import UserError
from vlm_jax.experiment import Experiment
from vlm_jax.health import guards
from vlm_jax.optim import merge
from vlm_jax.state import TrainState
from vlm_jax.tasks.base import ring_group


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a run before an array exists: mesh, optimizer, and shape and place of every array."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    tx: optax.GradientTransformation
    schedule: Callable[[int], float]
    abstract: TrainState
    shardings: TrainState

    @property
    def stacks(self) -> dict[str, int]:
        return self.experiment.task.stacks

    def placed(self) -> TrainState:
        """The abstract state with its shardings."""
        place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
        return jax.tree.map(place, self.abstract, self.shardings)


def make_plan(experiment: Experiment, devices: list[Any]) -> Plan:
    """Lays the state out over `devices`. Raises UserError for a mesh, a rule or a batch that does not fit."""
    task, layout = experiment.task, experiment.mesh
    mesh = layout.make(devices, ring_group(task, len(devices), experiment.batch_size))
    meshes.local_rows(mesh, experiment.batch_size // experiment.microbatches)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    tx, schedule = experiment.optimizer.make(variables["params"], experiment.clock, task.stacks)
    abstract = jax.eval_shape(lambda key: _initial(experiment, tx, key), jax.random.key(0))
    of = lambda params: meshes.shardings(params, layout, mesh, task.stacks)
    places = of(abstract.params)
    shardings = TrainState(
        step=meshes.replicated(mesh),
        params=places,
        frozen=of(abstract.frozen),
        state=jax.tree.map(lambda _: meshes.replicated(mesh), abstract.state),
        opt=meshes.follow(abstract.opt, abstract.params, places, mesh),
        ema=places if experiment.ema is not None else {},
        guard=jax.tree.map(lambda _: meshes.replicated(mesh), abstract.guard),
    )
    return Plan(experiment, mesh, tx, schedule, abstract, shardings)


def _initial(experiment: Experiment, tx: optax.GradientTransformation, key) -> TrainState:
    variables = experiment.task.init(key)
    params, frozen = experiment.optimizer.split(variables["params"], experiment.task.stacks)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        state=variables.get("state", {}),
        opt=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if experiment.ema is not None else {},
        guard=experiment.guards.empty(),
    )


def initialise(plan: Plan) -> TrainState:
    """The state at step 0; every array is made where it will live."""
    # It runs once, and optimising its random numbers takes a CPU longer than drawing them.
    cpu = plan.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    make = lambda key: _initial(plan.experiment, plan.tx, key)
    init = jax.jit(make, out_shardings=plan.shardings, compiler_options=options)
    return init(jax.random.key(plan.experiment.seed))


# Between a state and what a checkpoint holds


def to_items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint; locked parameters are saved with the trained ones, so that it holds a whole model."""
    items = {"params": merge(state.params, state.frozen), "state": state.state, "opt": state.opt}
    if state.ema:
        items["ema"] = merge(state.ema, state.frozen)
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def from_items(plan: Plan, step: int, items: dict[str, Any], guard: Mapping[str, Any] | None = None) -> TrainState:
    """The inverse of `to_items`; `guard` is what `meta` says that the guards remember."""
    split = plan.experiment.optimizer.split
    params, frozen = split(items["params"], plan.stacks)
    return TrainState(
        step=jax.device_put(jnp.asarray(step, jnp.int32), meshes.replicated(plan.mesh)),
        params=params,
        frozen=frozen,
        state=items.get("state", plan.abstract.state),
        opt=items.get("opt", plan.abstract.opt),
        ema=split(items["ema"], plan.stacks)[0] if "ema" in items else {},
        guard=jax.device_put(guards.from_json(plan.experiment.guards, guard), plan.shardings.guard),
    )


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins: its state, the state of its data (None at step 0), and a line that says whence."""

    state: TrainState
    data: dict | None
    message: str


def begin(plan: Plan, store: Store, warn: Callable[[str], None]) -> Start:
    """This workdir's last good step; else everything of `resume`; else the parameters of `init_from`; else scratch."""
    wanted = to_items(plan.placed())
    found = store.restore_latest(wanted)
    if found:
        return _start(plan, found, "resumed from step")
    resume, init_from = plan.experiment.resume, plan.experiment.init_from
    if resume:
        with Store(_existing(resume, "resume"), stacks=plan.stacks, warn=warn) as other:
            found = other.restore_latest(wanted)
        if not found:
            raise UserError(f"config.resume={resume}: there is no checkpoint in it.")
        return _start(plan, found, f"resumed from {resume}, step")
    if init_from:
        parts = isinstance(init_from, Mapping)
        load = warm_start.load_parts if parts else warm_start.load
        loaded = load(init_from, plan.experiment.task.model, warn)
        skip = (warm_start.others(init_from),) if parts else ()
        state = with_params(plan, initialise(plan), loaded.params, skip)
        state = state.replace(state=warm_start.load_state(init_from, state.state, loaded.steps))
        return Start(state, None, loaded.whence)
    return Start(initialise(plan), None, "from scratch")


def _start(plan: Plan, found, whence: str) -> Start:
    step, items, meta = found
    return Start(from_items(plan, step, items, meta.get("guard")), meta["data"], f"{whence} {step}")


def _existing(path: str, key: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"config.{key}={path}: no such folder.")
    return Path(path)


def with_params(plan: Plan, state: TrainState, params: dict, skip: Sequence[str] = ()) -> TrainState:
    """The state with the parameters (per-layer names) of another model, see `warm_start.fit`. Raises UserError."""
    live = merge(state.params, state.frozen)
    model = plan.experiment.task.model
    resize = getattr(getattr(model, "image", model), "posemb_resize", "bilinear")
    params = model.complete(params) if hasattr(model, "complete") else params
    live = warm_start.fit(params, live, plan.stacks, (*plan.experiment.init_from_skip, *skip), resize)
    trained, frozen = plan.experiment.optimizer.split(live, plan.stacks)
    ema = jax.tree.map(jnp.copy, trained) if state.ema else {}
    return state.replace(params=trained, frozen=frozen, ema=ema)
