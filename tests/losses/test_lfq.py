"""Lookup-free quantisation: signs and bits, and entropies against those of all codes written out."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import lfq, lfq_entropies, lfq_vectors


def features(bits: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, bits)).astype(np.float32)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def test_codes_are_the_signs():
    z = features()
    found = jax.jit(lfq)(z)
    np.testing.assert_array_equal(found.vectors, np.where(z > 0, 1, -1))
    np.testing.assert_array_equal(found.codes, (z > 0) @ [1, 2, 4, 8])
    np.testing.assert_array_equal(lfq_vectors(found.codes, 4), found.vectors)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda z: 3 * lfq(z).vectors.sum()))(z), 3)
    assert jax.jit(lfq)(features(31)).codes.min() >= 0


def probabilities(z, temperature):
    """Of every code, by its distance."""
    codes = np.array(list(itertools.product([-1, 1], repeat=z.shape[1])))
    logits = -np.square(z[:, None].astype(np.float64) - codes[None]).sum(-1) / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_entropies_are_those_of_all_codes():
    z, temperature = features(), 2.0
    of_tokens, of_batch = jax.jit(lambda z: lfq_entropies(z, temperature=temperature))(z)
    p = probabilities(z, temperature)
    np.testing.assert_allclose(of_tokens, entropy(p).mean(), rtol=1e-5)
    each_bit = [probabilities(z[:, i : i + 1], temperature).mean(axis=0) for i in range(4)]
    np.testing.assert_allclose(of_batch, sum(entropy(bit) for bit in each_bit), rtol=1e-5)
    assert entropy(p.mean(axis=0)) <= of_batch <= np.log(16)


def test_of_one_bit_the_entropy_of_the_batch_is_exact():
    z = features(bits=1)
    want = entropy(probabilities(z, 1.5).mean(axis=0))
    got = jax.jit(lambda z: lfq_entropies(z, temperature=1.5)[1])(z)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_far_from_the_border_entropies_and_gradients_are_finite():
    z = np.array([[100.0, -100.0], [100.0, 100.0]], np.float32)
    np.testing.assert_allclose(jax.jit(lfq_entropies)(z), [0, np.log(2)], atol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: jnp.subtract(*lfq_entropies(z))))(z)
    assert np.isfinite(gradient).all()


def test_eight_devices_give_the_entropies_of_one(pairs):
    z = features()
    loss = lambda z, axis_name=None: jnp.subtract(*lfq_entropies(z, temperature=1.0, axis_name=axis_name))
    want = jax.jit(jax.value_and_grad(loss))(z)
    body = functools.partial(loss, axis_name="data")
    mesh = pairs.make_mesh(data=8)
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("data"), out_specs=P())
    pairs.assert_close(jax.jit(jax.value_and_grad(mapped))(z), want)
    inside = jax.shard_map(jax.value_and_grad(body), mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")))
    pairs.assert_close(jax.jit(inside)(z), want)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="lfq needs 1 to 31 bits, one for each channel; got 32"):
        lfq(jnp.zeros((2, 32)))
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        lfq_entropies(jnp.zeros((2, 3)), temperature=0)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 8\); got 9"):
        lfq_vectors(np.array([9]), 3)
