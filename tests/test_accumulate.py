"""Microbatches: contrastive losses equal those of the whole batch, other losses are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Stepper, small_experiment
from vlm_jax import accumulate, startup
from vlm_jax.mesh import Layout
from vlm_jax.tasks.base import Context


def update(experiment, devices):
    """Metrics and parameters after one update."""
    stepper = Stepper.make(experiment, devices)
    state, metrics = stepper.update(startup.initialise(stepper.plan), stepper.batch())
    return jax.device_get((metrics, state.params, state.ema))


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["siglip_tiny", "clip_tiny"])
def test_cached_features_equal_the_single_batch(tmp_path, recipe):
    """With token dropping, EMA and rematerialisation on, and the caption ids that cross microbatches."""
    changes = {"task__model__image__patch_dropout": "0.5", "ema": "0.9", "task__model__image__remat": "block"}
    # Adam divides by the gradient's size, which makes noise of tiny gradients: sgd shows the gradients themselves.
    experiment = small_experiment(tmp_path, recipe, optimizer__name="sgd", **changes)
    one = jax.devices()[:1]
    metrics, params, ema = update(experiment, one)
    for microbatches in (2, 4, 8):
        found = update(dataclasses.replace(experiment, microbatches=microbatches), one)
        assert found[0]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
        assert found[0]["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)
        for wanted, got in zip(jax.tree.leaves((params, ema)), jax.tree.leaves(found[1:])):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.full
def test_on_a_sharded_mesh_too(tmp_path):
    experiment = small_experiment(tmp_path, batch_size="32", total_examples="384", optimizer__name="sgd")
    metrics, params, _ = update(experiment, jax.devices()[:1])
    sharded = dataclasses.replace(experiment, mesh=Layout(data=2, fsdp=4, min_size=1), microbatches=2)
    found, found_params, _ = update(sharded, jax.devices())
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found_params, params)


class Mean:
    """A loss that is a mean over examples, with a state that counts calls in order."""

    def loss(self, variables, batch, ctx):
        error = (batch["x"] @ variables["params"]["w"] - batch["y"]) ** 2
        state = {"seen": variables["state"]["seen"] * 10 + batch["x"].shape[0]}
        return error.mean(), {"metrics": {"error": error.mean()}, "state": state}


def test_other_losses_are_averaged_and_their_state_is_threaded():
    mesh = Layout().make(jax.devices()[:1])
    key = jax.random.key(0)
    ctx = Context(key, jnp.zeros((), jnp.int32), 1, mesh)
    batch = {"x": jax.random.normal(key, (8, 3)), "y": jnp.ones(8)}
    params, state = {"w": jnp.arange(3.0)}, {"seen": jnp.zeros((), jnp.int32)}
    variables = lambda params, state: {"params": params, "state": state}
    wanted = accumulate.whole(Mean(), variables, params, state, batch, ctx)
    found = accumulate.averaged(Mean(), variables, params, state, batch, ctx, 4)
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-6)
    np.testing.assert_allclose(found.grads["w"], wanted.grads["w"], rtol=1e-6)
    np.testing.assert_allclose(found.metrics["error"], wanted.metrics["error"], rtol=1e-6)
    assert int(found.state["seen"]) == 2222


def test_split_rows_and_merge_rows_are_inverse():
    mesh = Layout().make(jax.devices()[:4])
    x = jnp.arange(48).reshape(16, 3)
    split = accumulate.split_rows(x, 4, mesh)
    np.testing.assert_array_equal(split[1], x[1::4])
    np.testing.assert_array_equal(accumulate.merge_rows(split, mesh), x)
