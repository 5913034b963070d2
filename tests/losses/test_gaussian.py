"""The Gaussian posterior: its divergence by quadrature, its samples by their moments, on any number of devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import gaussian_kl, gaussian_sample


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.5), (0.1, 1e-2)])
def test_kl_is_the_integral(mean, deviation):
    p, q = scipy.stats.norm(mean, deviation), scipy.stats.norm()
    integrand = lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))
    want, _ = scipy.integrate.quad(integrand, mean - 12 * deviation, mean + 12 * deviation, points=[mean])
    got = gaussian_kl(jnp.full((1, 1), mean), jnp.full((1, 1), 2 * np.log(deviation)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def problem():
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((16, 3, 2)).astype(np.float32) for _ in range(2))


def test_kl_is_the_mean_over_examples_of_the_sum_over_latents():
    mean, log_variance = problem()
    each = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    np.testing.assert_allclose(gaussian_kl(mean, log_variance), each.sum(axis=(1, 2)).mean(), rtol=1e-6)


@pytest.mark.full
def test_eight_devices_give_the_same_samples_and_gradients(pairs):
    arguments, key = problem(), jax.random.key(0)

    def loss(mean, log_variance, axis_name=None):
        sample = gaussian_sample(key, mean, log_variance, axis_name=axis_name)
        total = jnp.sum(sample**2)
        total = jax.lax.psum(total, axis_name) if axis_name else total
        return total + gaussian_kl(mean, log_variance, axis_name=axis_name)

    body = functools.partial(loss, axis_name="data")
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=8), in_specs=P("data"), out_specs=P())
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    pairs.assert_close(jax.jit(jax.value_and_grad(mapped, (0, 1)))(*arguments), want)


def test_samples_are_normal():
    mean, log_variance = (np.full((2000, 5), x, np.float32) for x in (3.0, 2 * np.log(0.5)))
    sample = np.asarray(jax.jit(gaussian_sample)(jax.random.key(1), mean, log_variance))
    assert scipy.stats.kstest(((sample - 3) / 0.5).ravel(), "norm").pvalue > 1e-3


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"mean and log_variance must have the same shape; got \(2, 3\) and \(2, 4\)"):
        gaussian_kl(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="mean must have a batch axis; got a scalar"):
        gaussian_kl(jnp.zeros(()), jnp.zeros(()))
