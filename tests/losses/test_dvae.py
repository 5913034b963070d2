"""Gumbel-softmax: equality with its dense twin for any tile and mesh, and samples of the right distribution."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import gumbel_noise, gumbel_softmax, most_likely_code, reference

FAST_COMPILE = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(7)


def problem(tokens: int = 24, codes: int = 13, dim: int = 5, out: int = 3, seed: int = 0):
    """Hidden, head, bias, codebook and temperature; and weights for the vectors and for the KL."""
    rng = np.random.default_rng(seed)
    shapes = (tokens, dim), (codes, dim), (codes,), (codes, out), (), (tokens, out), (tokens,)
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    arrays[4] = jnp.float32(0.7)
    return tuple(arrays[:5]), tuple(arrays[5:])


def weighted(found, weights, axis_name=None):
    vectors, codes, kl = found
    total = jnp.sum(vectors * weights[0]) + jnp.sum(kl * weights[1])
    return jax.lax.psum(total, axis_name) if axis_name else total, codes


def gradients(f, arguments, weights):
    loss = lambda *arguments: weighted(f(*arguments), weights)
    compiled = jax.jit(jax.value_and_grad(loss, tuple(range(5)), has_aux=True), compiler_options=FAST_COMPILE)
    return compiled(*arguments)


def dense(arguments, hard: bool):
    tokens, codes = arguments[0].shape[0], arguments[2].size
    noise = jax.jit(gumbel_noise)(KEY, np.arange(tokens), np.arange(codes))
    return functools.partial(reference.gumbel_softmax, noise=noise, hard=hard)


@pytest.mark.parametrize(
    "tokens, codes, tile, hard",
    [
        (24, 13, (7, 5), True),
        pytest.param(24, 13, (1024, 4096), False, marks=pytest.mark.full),
        pytest.param(130, 260, (128, 128), False, marks=pytest.mark.full),
        pytest.param(130, 260, (128, 128), True, marks=pytest.mark.full),
    ],
)
def test_any_tile_equals_the_dense_twin(pairs, tokens, codes, tile, hard):
    arguments, weights = problem(tokens, codes)
    (want, want_codes), want_gradients = gradients(dense(arguments, hard), arguments, weights)
    tiled = functools.partial(gumbel_softmax, key=KEY, hard=hard, tile=tile)
    (value, found), got = gradients(tiled, arguments, weights)
    np.testing.assert_array_equal(found, want_codes)
    pairs.assert_close((value, got), (want, want_gradients), floor=1e-6)


@pytest.mark.parametrize(
    "sizes, axes",
    [pytest.param({"data": 8}, "data", marks=pytest.mark.full), ({"data": 2, "fsdp": 4}, ("fsdp", "data"))],
    ids=str,
)
def test_any_mesh_equals_the_dense_twin(pairs, sizes, axes):
    arguments, weights = problem()
    (want, want_codes), want_gradients = gradients(dense(arguments, False), arguments, weights)
    specs, mesh = (P(axes), P(), P(), P(), P()), pairs.make_mesh(**sizes)

    def body(arguments, weights):
        found = gumbel_softmax(*arguments, KEY, axis_name=axes, tile=(2, 5))
        return weighted(found, weights, axes)

    if axes == "data":  # grad(shard_map(f)), or shard_map(grad(f))
        f = jax.shard_map(body, mesh=mesh, in_specs=(specs, P(axes)), out_specs=(P(), P(axes)))
        f = jax.value_and_grad(f, has_aux=True)
    else:
        f = jax.value_and_grad(body, has_aux=True)
        f = jax.shard_map(f, mesh=mesh, in_specs=(specs, P(axes)), out_specs=((P(), P(axes)), specs))
    (value, codes), got = jax.jit(f, compiler_options=FAST_COMPILE)(arguments, weights)
    np.testing.assert_array_equal(codes, want_codes)
    pairs.assert_close((value, got), (want, want_gradients), floor=1e-6)


def test_samples_have_the_distribution_of_the_logits():
    """Chi-squared of 20,000 samples of 40 codes; a right program fails one seed in a thousand, and this is one seed."""
    samples, logits = 20_000, np.random.default_rng(0).standard_normal(40)
    hidden, bias = jnp.zeros((samples, 1)), jnp.asarray(logits, jnp.float32)
    sample = jax.jit(functools.partial(gumbel_softmax, tile=(1024, 16)))
    found = sample(hidden, jnp.zeros((40, 1)), bias, jnp.zeros((40, 1)), 1.0, KEY)
    counts = np.bincount(found.codes, minlength=40)
    want = samples * np.exp(logits) / np.exp(logits).sum()
    assert scipy.stats.chisquare(counts, want).pvalue > 1e-3
    # Neighbours are independent: so are pairs of their codes.
    table = np.histogram2d(found.codes[:-1] % 4, found.codes[1:] % 4, bins=4)[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_noise_is_standard_gumbel_and_another_for_another_key():
    noise_of = jax.jit(gumbel_noise)
    noise = np.asarray(noise_of(KEY, np.arange(200), np.arange(100)))
    assert noise.shape == (200, 100)
    assert scipy.stats.kstest(noise.ravel(), "gumbel_r").pvalue > 1e-3
    np.testing.assert_array_equal(noise_of(KEY, np.arange(50, 60), np.arange(9, 11)), noise[50:60, 9:11])
    other = np.asarray(noise_of(jax.random.key(8, impl="rbg"), np.arange(200), np.arange(100)))
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.03


def test_kl_is_that_to_the_uniform_distribution():
    bias = jnp.array([[0.0, 0, 0, 0], [50, 0, 0, 0], [np.log(3), 0, -50, -50]])
    nothing = jnp.zeros((1, 1)), jnp.zeros((4, 1))
    kl = jax.jit(lambda bias: gumbel_softmax(*nothing, bias, nothing[1], 0.5, KEY).kl[0])
    kl = [kl(b) for b in bias]
    p = np.array([0.75, 0.25])
    np.testing.assert_allclose(kl, [0, np.log(4), np.sum(p * np.log(4 * p))], atol=1e-5)


def test_cold_weights_are_those_of_one_code(pairs):
    arguments, _ = problem()
    found = jax.jit(gumbel_softmax)(*arguments[:4], 1e-4, KEY)
    pairs.assert_close(found.vectors, arguments[3][found.codes])


def test_the_most_likely_code_has_the_largest_logit():
    (hidden, head, bias, *_), _ = problem(40, 50)
    want = np.argmax(np.asarray(hidden) @ np.asarray(head).T + np.asarray(bias), axis=1)
    got = jax.jit(functools.partial(most_likely_code, tile=(16, 7)))(hidden, head, bias)
    np.testing.assert_array_equal(got, want)


@pytest.mark.full
def test_bf16_is_summed_in_f32_and_gives_gradients_of_each_type(pairs):
    (hidden, *others), weights = problem(64, 40)
    hidden = hidden.astype(jnp.bfloat16)
    want = gradients(dense((hidden, *others), False), (hidden, *others), weights)
    _, got = gradients(functools.partial(gumbel_softmax, key=KEY, tile=(16, 16)), (hidden, *others), weights)
    assert [g.dtype for g in got] == [jnp.bfloat16] + 4 * [jnp.float32]
    pairs.assert_close(got, want[1], 4e-2)
    assert jax.eval_shape(gumbel_softmax, hidden, *others, KEY).vectors.dtype == jnp.bfloat16


@pytest.mark.full
def test_keeps_no_weights_for_the_backward_pass():
    """1,024 tokens and 4,096 codes: the weights would be 16 MiB."""
    arguments, _ = problem(1024, 4096)
    _, pullback = jax.jit(lambda *a: jax.vjp(lambda *a: gumbel_softmax(*a, KEY)[::2], *a))(*arguments)
    kept = sum(x.nbytes for x in jax.tree.leaves(pullback))
    assert kept - sum(x.nbytes for x in arguments) < 2**17


F32 = jnp.float32


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"hidden": (24, 4)}, r"hidden and head must have the same dim; got \(24, 4\) and \(13, 5\)"),
        ({"bias": (12,)}, r"bias must be of shape \(13,\), one for each code; got \(12,\)"),
        ({"codebook": (12, 3)}, r"head and codebook must have the same codes; got \(13, 5\) and \(12, 3\)"),
        ({"temperature": (24,)}, r"temperature must be a scalar; got shape \(24,\)"),
        ({"hidden": (2, 12, 5)}, r"hidden must be \[tokens, dim\]; got \(2, 12, 5\)"),
    ],
)
def test_bad_input_is_refused_at_trace_time(changed, says):
    shapes = {"hidden": (24, 5), "head": (13, 5), "bias": (13,), "codebook": (13, 3), "temperature": ()} | changed
    arguments = [jax.ShapeDtypeStruct(shape, F32) for shape in shapes.values()]
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda *a: gumbel_softmax(*a, KEY), *arguments)


def test_a_temperature_that_is_known_must_be_positive():
    (*arguments, _), _ = problem()
    with pytest.raises(ValueError, match="temperature must be positive; got 0"):
        jax.eval_shape(lambda *a: gumbel_softmax(*a, 0.0, KEY), *arguments)
