"""The update: the same on any mesh, accumulation, the guard, EMA, freezing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Stepper, small_experiment
from vlm_jax import startup, tree
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.nn import shard
from vlm_jax.step import variables_of
from vlm_jax.tasks.base import Context


def one_step(experiment, devices, batches=1):
    stepper = Stepper.make(experiment, devices)
    state = startup.initialise(stepper.plan)
    for _ in range(batches):
        state, metrics = stepper.update(state, stepper.batch())
    return state, metrics


def gradients(experiment, devices):
    """Loss and gradients of the first batch, on the given devices."""
    stepper = Stepper.make(experiment, devices)
    state, task = startup.initialise(stepper.plan), experiment.task

    def loss(params, batch):
        ctx = Context(jax.random.key(0), jnp.zeros((), jnp.int32), 1, stepper.plan.mesh)
        with shard.under(stepper.plan.mesh):
            return task.loss({"params": params, "state": {}, "frozen": {}}, batch, ctx)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params, stepper.batch())
    return float(value), tree.flatten(jax.device_get(grads))


@pytest.mark.parametrize("recipe", [pytest.param("siglip_tiny", marks=pytest.mark.full), "clip_tiny"])
def test_eight_devices_equal_one(tmp_path, recipe):
    # min_size 1 shards even the smallest weights, so that fsdp is really exercised.
    base = small_experiment(tmp_path, recipe)
    value, wanted = gradients(base, jax.devices()[:1])
    layouts = [Layout(data=8), Layout(data=1, fsdp=8, min_size=1), Layout(data=2, fsdp=4, min_size=1)]
    layouts.insert(0, Layout(data=2, fsdp=2, tensor=2, min_size=1))
    for layout in layouts if recipe == "siglip_tiny" else layouts[-1:]:
        found, grads = gradients(dataclasses.replace(base, mesh=layout), jax.devices())
        assert found == pytest.approx(value, rel=1e-5)
        for name, gradient in wanted.items():
            np.testing.assert_allclose(grads[name], gradient, rtol=1e-5, atol=1e-5, err_msg=f"{layout} {name}")


@pytest.mark.full
def test_fsdp_really_shards(tmp_path):
    experiment = dataclasses.replace(small_experiment(tmp_path), mesh=Layout(data=1, fsdp=8, min_size=1))
    state, _ = one_step(experiment, jax.devices())
    kernel = state.params["image"]["blocks"]["00"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    assert state.opt[2].mu["image"]["blocks"]["00"]["mlp"]["fc1"]["kernel"].sharding == kernel.sharding


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(tmp_path):
    stepper = Stepper.make(small_experiment(tmp_path, ema="0.9"), jax.devices()[:1])
    state = startup.initialise(stepper.plan)
    bad = jax.tree.map(lambda x: x, state.params)
    bad["logit_scale"] = jnp.asarray(jnp.nan)
    after, metrics = stepper.update(state.replace(params=bad), stepper.batch())
    assert float(metrics["skipped"]) == 1 and int(after.step) == 1
    for name in ("params", "opt", "ema"):
        before = bad if name == "params" else getattr(state, name)
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b, equal_nan=True)), before, getattr(after, name))
        assert all(jax.tree.leaves(same)), name


def test_ema_follows_the_parameters(tmp_path):
    stepper = Stepper.make(small_experiment(tmp_path, ema="0.5"), jax.devices()[:1])
    start = startup.initialise(stepper.plan)
    after, _ = stepper.update(start, stepper.batch())
    decay = 1 / 10  # the first step's: (1 + 0) / (10 + 0), below 0.5
    wanted = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, start.params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.ema, wanted)
    ema, raw = variables_of(after, "ema")["params"], variables_of(after)["params"]
    assert not np.array_equal(ema["image"]["head"]["kernel"], raw["image"]["head"]["kernel"])


def test_a_locked_tower_stays_and_costs_no_optimizer_state(tmp_path):
    experiment = small_experiment(tmp_path, optimizer__lock="(('image', 'all'),)")
    stepper = Stepper.make(experiment, jax.devices()[:1])
    state = startup.initialise(stepper.plan)
    after, _ = stepper.update(state, stepper.batch())
    assert not any("image" in name for name in tree.flatten(state.opt))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    assert set(after.params) == {"text", "logit_scale", "logit_bias"} and set(after.frozen) == {"image"}
    whole = startup.to_items(after)["params"]
    assert set(whole) == {"image", "text", "logit_scale", "logit_bias"}


@pytest.mark.full
def test_scanned_layers_train_as_unrolled_ones(tmp_path):
    losses = {}
    for scan in ("False", "True"):
        changes = {
            f"task__model__{tower}__{key}": value
            for tower in ("image", "text")
            for key, value in (("scan", scan), ("depth", "2"))
        }
        _, metrics = one_step(small_experiment(tmp_path, **changes), jax.devices()[:1], batches=4)
        losses[scan] = float(metrics["loss"])
    assert losses["True"] == pytest.approx(losses["False"], rel=1e-4)


@pytest.mark.full
def test_clip_keeps_its_scale_in_bounds(tmp_path):
    changes = {"task__model__logit_scale_init": "4.6", "optimizer__learning_rate": "10"}
    state, metrics = one_step(small_experiment(tmp_path, "clip_tiny", **changes), jax.devices()[:1], batches=3)
    assert 0.0 <= float(state.params["logit_scale"]) <= np.log(100) + 1e-6
    assert float(metrics["skipped"]) == 0


def test_microbatches_must_divide_over_devices(tmp_path):
    experiment = small_experiment(tmp_path, microbatches="4")
    with pytest.raises(UserError, match="batch_size=4 is not divisible by the 8 devices"):
        startup.make_plan(experiment, jax.devices())


@pytest.mark.full
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(tmp_path):
    run = lambda seed: float(one_step(small_experiment(tmp_path, seed=seed), jax.devices()[:1], batches=2)[1]["loss"])
    assert run("3") == run("3") != run("4")
