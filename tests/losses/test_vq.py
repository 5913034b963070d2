"""Vector quantisation: the search, both gradients and both losses against numpy, alone and over many devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import look_up, nearest_code, quantise, reference, unit, vq_losses


def problem(tokens: int = 24, codes: int = 10, dim: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, dim)).astype(np.float32), rng.standard_normal((codes, dim)).astype(np.float32)


def nearest(z, codebook):
    return np.square(z[:, None].astype(np.float64) - codebook[None]).sum(-1).argmin(axis=1)


@pytest.mark.parametrize(
    "tokens, codes, tile", [(29, 23, (7, 5)), pytest.param(300, 270, (128, 128), marks=pytest.mark.full)]
)
def test_search_finds_what_all_distances_say(tokens, codes, tile):
    z, codebook = problem(tokens, codes)
    got = jax.jit(functools.partial(nearest_code, tile=tile))(z, codebook)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, nearest(z, codebook))
    np.testing.assert_array_equal(reference.nearest_code(z, codebook), got)


def test_search_by_angle():
    z, codebook = problem()
    cosines = (z @ codebook.T) / np.linalg.norm(codebook, axis=1)
    codes = jax.jit(functools.partial(nearest_code, cosine=True, tile=(7, 3)))(z, codebook)
    np.testing.assert_array_equal(codes, cosines.argmax(axis=1))
    assert np.any(codes != nearest(z, codebook))


def test_of_equal_codes_the_first():
    z, codebook = problem(codes=4)
    found = jax.jit(functools.partial(nearest_code, tile=(8, 3)))(z, np.tile(codebook, (5, 1)))
    np.testing.assert_array_equal(found, nearest(z, codebook))


def vqvae(z, codebook, weights, beta: float = 0.25, axis_name=None, **options):
    """A linear decoder's loss, and the two of VQ-VAE."""
    found = quantise(z, codebook, **options)
    codebook_loss, commitment = vq_losses(found.z, found.nearest, axis_name=axis_name)
    total = jnp.sum(found.vectors * weights)
    return (jax.lax.psum(total, axis_name) if axis_name else total) + codebook_loss + beta * commitment


def test_straight_through_gradients_are_those_of_the_formulas(pairs):
    z, codebook = problem()
    weights, beta = problem(seed=1)[0], 0.25
    codes = nearest(z, codebook)
    e = codebook[codes]
    value, (d_z, d_codebook) = jax.jit(jax.value_and_grad(vqvae, (0, 1)))(z, codebook, weights)
    pairs.assert_close(value, (weights * e).sum() + (1 + beta) * ((z - e) ** 2).mean())
    pairs.assert_close(d_z, weights + beta * 2 * (z - e) / z.size)
    want = np.zeros_like(codebook)
    np.add.at(want, codes, 2 * (e - z) / z.size)
    pairs.assert_close(d_codebook, want)


def test_rotation_turns_the_gradient_as_the_feature_was_turned(pairs):
    z, codebook = problem()
    weights = problem(seed=1)[0]
    f = lambda z: quantise(z, codebook, gradient="rotation").vectors
    found, d_z = jax.jit(lambda z, g: (f(z), jax.vjp(f, z)[1](g)[0]))(z, weights)
    codes = nearest(z, codebook)
    np.testing.assert_array_equal(found, codebook[codes])
    want = []
    for x, q, g in zip(z.astype(np.float64), codebook[codes].astype(np.float64), weights):
        a, b = x / np.linalg.norm(x), q / np.linalg.norm(q)
        r = (a + b) / np.linalg.norm(a + b)
        rotation = np.eye(len(x)) - 2 * np.outer(r, r) + 2 * np.outer(b, a)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(x)), atol=1e-12)
        jacobian = np.linalg.norm(q) / np.linalg.norm(x) * rotation
        np.testing.assert_allclose(jacobian @ x, q, atol=1e-12)
        want.append(jacobian.T @ g)
    pairs.assert_close(d_z, np.array(want))


def test_gradients_are_finite_where_nothing_can_be_turned():
    """Zero, its own code, and the opposite of it."""
    codebook = np.array([[1.0, 0.0]], np.float32)
    z = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    for cosine in (False, True):
        f = lambda z, cosine=cosine: quantise(z, codebook, gradient="rotation", cosine=cosine).vectors.sum()
        d_z = jax.jit(jax.grad(f))(z)
        assert np.isfinite(d_z).all()


def test_by_angle_all_is_of_unit_length(pairs):
    z, codebook = problem()
    found = jax.jit(functools.partial(quantise, cosine=True))(z, codebook)
    e = codebook[found.codes]
    pairs.assert_close(found.vectors, e / np.linalg.norm(e, axis=1, keepdims=True))
    pairs.assert_close(found.nearest, found.vectors)
    pairs.assert_close(found.z, z / np.linalg.norm(z, axis=1, keepdims=True))
    assert not np.any(unit(jnp.zeros((2, 3))))


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"gradient": "rotation", "cosine": True}], ids=str)
def test_eight_devices_give_the_gradients_of_one(pairs, options):
    z, codebook = problem()
    weights = problem(seed=1)[0]
    want = jax.jit(jax.value_and_grad(functools.partial(vqvae, **options), (0, 1)))(z, codebook, weights)
    mesh, specs = pairs.make_mesh(data=8), (P("data"), P(), P("data"))
    body = functools.partial(vqvae, axis_name="data", **options)
    outside = jax.value_and_grad(jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P()), (0, 1))
    pairs.assert_close(jax.jit(outside)(z, codebook, weights), want)
    inside = jax.value_and_grad(body, (0, 1))
    inside = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=(P(), (P("data"), P())))
    pairs.assert_close(jax.jit(inside)(z, codebook, weights), want)


def test_types():
    z, codebook = problem()
    z = z.astype(jnp.bfloat16)
    found = jax.eval_shape(quantise, z, codebook)
    assert found.vectors.dtype == jnp.bfloat16
    assert jax.eval_shape(vq_losses, found.z, found.nearest)[0].dtype == jnp.float32
    d_z = jax.grad(lambda z: quantise(z, codebook, gradient="rotation").vectors.sum())
    assert jax.eval_shape(d_z, z).dtype == jnp.bfloat16


def test_a_code_that_is_not_there_is_an_error_or_nan():
    codebook = problem()[1]
    np.testing.assert_array_equal(look_up(codebook, np.array([[0, 9]])), codebook[None, [0, 9]])
    for code in (10, -1):
        with pytest.raises(ValueError, match=rf"codes must be in \[0, 10\); got {code}"):
            look_up(codebook, np.array([0, code]))
        assert np.isnan(jax.jit(look_up)(codebook, np.array([0, code]))).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize(
    "z, codebook, options, says",
    [
        (((4, 3), np.float32), ((5, 2), np.float32), {}, r"same dim; got \(4, 3\) and \(5, 2\)"),
        (((2, 4, 3), np.float32), ((5, 3), np.float32), {}, r"z must be \[tokens, dim\]; got \(2, 4, 3\)"),
        (((4, 3), np.float32), ((0, 3), np.float32), {}, r"codebook must not be empty; got \(0, 3\)"),
        (((4, 3), np.int32), ((5, 3), np.float32), {}, "z must be of a floating-point type; got int32"),
        (((4, 3), np.float32), ((5, 3), np.float32), {"gradient": "ste"}, "straight_through, rotation; got 'ste'"),
        (((4, 3), np.float32), ((5, 3), np.float32), {"tile": (0, 8)}, "tile must be two positive sizes"),
    ],
)
def test_bad_input_is_refused_at_trace_time(z, codebook, options, says):
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(functools.partial(quantise, **options), jnp.zeros(*z), jnp.zeros(*codebook))


def test_losses_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"z and nearest must have the same shape; got \(4, 3\) and \(4, 2\)"):
        vq_losses(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
