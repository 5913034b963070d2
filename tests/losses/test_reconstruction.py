"""Losses of pixels: the density of logit-Laplace integrates to one; all are means of the global batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import l1_loss, l2_loss, logit_laplace_loss, logit_laplace_nll, map_pixels, unmap_pixels


@pytest.mark.parametrize("mean, log_scale", [(1.3, -2.0), (-2.0, 0.7)])
def test_the_density_integrates_to_one(mean, log_scale):
    # In the logit u of the pixel, dx = x (1 - x) du, the integrand has one corner and no poles.
    u = mean + np.exp(log_scale) * np.linspace(-18, 18, 20_001)
    u = u[np.abs(u) < 15]
    x = 1 / (1 + np.exp(-u))
    arguments = (np.broadcast_to(v, u.shape).astype(np.float32) for v in (x, mean, log_scale))
    nll = jax.jit(logit_laplace_nll)(*arguments)
    density = np.exp(-np.asarray(nll, np.float64)) * x * (1 - x)
    np.testing.assert_allclose(scipy.integrate.simpson(density, x=u), 1, atol=1e-3)


def problem():
    rng = np.random.default_rng(0)
    pixels = rng.random((8, 4, 4, 3))
    pixels[0, 0, 0] = [0, 1, 0.5]
    mean, log_scale = rng.standard_normal((2, *pixels.shape))
    return tuple(x.astype(np.float32) for x in (pixels, mean, log_scale))


def test_logit_laplace_is_that_of_the_formula():
    pixels, mean, log_scale = problem()
    x = 0.8 * pixels.astype(np.float64) + 0.1
    nll = np.abs(np.log(x / (1 - x)) - mean) / np.exp(log_scale) + np.log(2 * np.exp(log_scale)) + np.log(x * (1 - x))
    np.testing.assert_allclose(jax.jit(logit_laplace_loss)(pixels, mean, log_scale), nll.mean(), rtol=1e-5)


def test_pixels_are_found_again():
    pixels, *_ = problem()
    mapped = map_pixels(pixels)
    np.testing.assert_allclose([mapped.min(), mapped.max()], [0.1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(unmap_pixels(mapped), pixels, atol=1e-6)
    np.testing.assert_array_equal(unmap_pixels(jnp.array([0.0, 1.0])), [0, 1])


def test_l1_and_l2():
    a, b, _ = problem()
    np.testing.assert_allclose(l1_loss(a, b), np.abs(a - b).mean(), rtol=1e-6)
    np.testing.assert_allclose(l2_loss(a, b), np.square(a - b).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "loss, arrays", [(l1_loss, 2), pytest.param(l2_loss, 2, marks=pytest.mark.full), (logit_laplace_loss, 3)]
)
def test_eight_devices_give_the_loss_and_the_gradients_of_one(pairs, loss, arrays):
    arguments = problem()[::-1][:arrays] if arrays == 2 else problem()
    body = functools.partial(loss, axis_name="data")
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=8), in_specs=P("data"), out_specs=P())
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    pairs.assert_close(jax.jit(jax.value_and_grad(mapped, (0, 1)))(*arguments), want)


def test_bad_input_is_refused():
    pixels, mean, log_scale = problem()
    with pytest.raises(ValueError, match="must have the same shape; got"):
        logit_laplace_loss(pixels, mean[1:], log_scale)
    with pytest.raises(ValueError, match="pixels must be of a floating-point type; got uint8"):
        logit_laplace_loss(np.zeros((2, 3), np.uint8), mean, log_scale)
    with pytest.raises(ValueError, match=r"eps must be in \(0, 0.5\); got 0.5"):
        map_pixels(pixels, 0.5)
    with pytest.raises(ValueError, match=r"prediction and target must have the same shape; got \(8,\) and \(7,\)"):
        l2_loss(jnp.zeros(8), jnp.zeros(7))
