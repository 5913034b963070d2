"""The distance of features against its formula, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import perceptual_loss


def layers(seed: int) -> list[np.ndarray]:
    """Features of two layers, of other sizes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 5), (8, 4, 6))]


def test_it_is_lpips_with_weights_of_1():
    want = 0.0
    for a, b in zip(layers(0), layers(1)):
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        want += np.mean([np.square(a[i] - b[i]).sum(-1).mean() for i in range(8)])
    np.testing.assert_allclose(perceptual_loss(layers(0), layers(1)), want, rtol=1e-5)
    assert perceptual_loss(layers(0), layers(0)) == 0
    np.testing.assert_allclose(perceptual_loss(layers(0), [3 * x for x in layers(1)]), want, rtol=1e-5)


def test_features_of_zero_have_a_gradient():
    gradient = jax.grad(lambda x: perceptual_loss([x], layers(0)[1:]))(jnp.zeros((8, 4, 6)))
    assert np.isfinite(gradient).all()


def test_eight_devices_give_the_loss_of_one(pairs):
    body = functools.partial(perceptual_loss, axis_name="data")
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=8), in_specs=P("data"), out_specs=P())
    want = jax.jit(jax.value_and_grad(perceptual_loss))(layers(0), layers(1))
    pairs.assert_close(jax.jit(jax.value_and_grad(mapped))(layers(0), layers(1)), want)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="of the same layers; got 2 and 1"):
        perceptual_loss(layers(0), layers(0)[:1])
    with pytest.raises(ValueError, match="must have the same shape"):
        perceptual_loss(layers(0)[:1], layers(0)[1:])
