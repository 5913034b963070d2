"""Losses of the discriminator and its adversary against numpy, and the weight that brings their gradients together."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_generator_loss,
)


def logits() -> tuple[np.ndarray, np.ndarray]:
    return tuple(2 * np.random.default_rng(0).standard_normal((2, 8, 3, 3)).astype(np.float32))


def test_losses_are_those_of_the_formulas():
    real, fake = logits()
    want = (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()) / 2
    np.testing.assert_allclose(hinge_discriminator_loss(real, fake), want, rtol=1e-6)
    np.testing.assert_allclose(hinge_generator_loss(fake), -fake.mean(), rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(-fake.astype(np.float64)))
    np.testing.assert_allclose(non_saturating_generator_loss(fake), -np.log(sigmoid).mean(), rtol=1e-6)
    gradient = jax.grad(non_saturating_generator_loss)(fake)
    np.testing.assert_allclose(gradient, (sigmoid - 1) / fake.size, rtol=1e-4)


def test_eight_devices_give_the_losses_of_one(pairs):
    def losses(real, fake, axis_name=None):
        found = functools.partial(hinge_discriminator_loss, real), hinge_generator_loss, non_saturating_generator_loss
        return sum(weight * f(fake, axis_name=axis_name) for weight, f in enumerate(found, start=1))

    body = functools.partial(losses, axis_name="data")
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=8), in_specs=P("data"), out_specs=P())
    want = jax.jit(jax.value_and_grad(losses, (0, 1)))(*logits())
    pairs.assert_close(jax.jit(jax.value_and_grad(mapped, (0, 1)))(*logits()), want)


def test_weighted_gradients_are_of_equal_length():
    a, b = ({"kernel": x[0], "bias": x[1]} for x in logits())
    length = lambda tree: np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))
    weight = adaptive_weight(a, b, eps=0.0)
    np.testing.assert_allclose(length(a), weight * length(b), rtol=1e-6)
    np.testing.assert_allclose(adaptive_weight(a, b, eps=0.5), length(a) / (length(b) + 0.5), rtol=1e-6)
    nothing = jax.tree.map(np.zeros_like, b)
    assert adaptive_weight(a, nothing) == 1e4 and adaptive_weight(nothing, a) == 0
    assert not np.any(jax.grad(lambda x: adaptive_weight(x, b["kernel"]))(a["kernel"]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="real must be of a floating-point type; got int32"):
        hinge_discriminator_loss(jnp.zeros(3, int), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"by the same parameters; got shapes \(3,\) and \(4,\)"):
        adaptive_weight(jnp.zeros(3), jnp.zeros(4))
