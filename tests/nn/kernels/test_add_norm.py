"""The kernel, in the interpreter, and the plain formula against LayerNorm in f64: results and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vlm_jax.nn.kernels import add_layer_norm

EPSILON = 1e-6
WAYS = pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "plain"])


def in_f64(x, y, scale, bias, sum_bar, out_bar):
    """Results and gradients by the textbook: two passes, f64."""
    x, y, scale, bias, sum_bar, out_bar = (np.asarray(a, np.float64) for a in (x, y, scale, bias, sum_bar, out_bar))
    z = x + y
    centred = z - z.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    normed = centred / deviation
    bar = out_bar * scale
    branch = (bar - bar.mean(-1, keepdims=True) - normed * (bar * normed).mean(-1, keepdims=True)) / deviation
    rows = tuple(range(x.ndim - 1))
    return z, normed * scale + bias, branch + sum_bar, (out_bar * normed).sum(rows), out_bar.sum(rows)


def case(shape, dtype=jnp.float32, mean=0.5):
    random = np.random.default_rng(0)
    normal = lambda *s: random.normal(size=s)
    x, y, sum_bar, out_bar = (jnp.asarray(normal(*shape) + mean, dtype) for _ in range(4))
    scale, bias = (jnp.asarray(1 + 0.3 * normal(shape[-1]), jnp.float32) for _ in range(2))
    return x, y, scale, bias, sum_bar, out_bar


def ours(x, y, scale, bias, sum_bar, out_bar, **options):
    f = functools.partial(add_layer_norm, epsilon=EPSILON, **options)
    (total, out), vjp = jax.vjp(f, x, y, scale, bias)
    x_bar, y_bar, scale_bar, bias_bar = vjp((sum_bar.astype(total.dtype), out_bar.astype(out.dtype)))
    if y is not None:
        np.testing.assert_array_equal(x_bar, y_bar)
    return total, out, x_bar, scale_bar, bias_bar


@WAYS
@pytest.mark.parametrize("shape", [(2, 20, 128), (6, 64, 256), (3, 2, 5, 128), (40, 128), (2, 520, 1024)], ids=str)
def test_equals_layer_norm(shape, interpret):
    """Sums over all rows grow with their number; so does the rounding."""
    arrays = case(shape)
    for a, b in zip(ours(*arrays, interpret=interpret), in_f64(*arrays)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 if b.ndim > 1 else 2e-4)


@WAYS
def test_without_a_second_term(interpret):
    x, _, *rest = case((2, 20, 128))
    for a, b in zip(ours(x, None, *rest, interpret=interpret), in_f64(x, 0 * x, *rest)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@WAYS
@pytest.mark.parametrize("with_sum", [True, False], ids=["sum", "norm alone"])
def test_the_gradient_of_the_bias_of_the_second_term(with_sum, interpret):
    """It is the sum of the rows of that term's cotangent; the other gradients stay as they are."""
    x, y, scale, bias, sum_bar, out_bar = case((3, 20, 128))
    f = functools.partial(add_layer_norm, epsilon=EPSILON, interpret=interpret, with_sum=with_sum)
    bars = (sum_bar, out_bar) if with_sum else out_bar
    expected = jax.vjp(f, x, y, scale, bias)[1](bars)
    *got, y_bias_bar = jax.vjp(f, x, y, scale, bias, jnp.ones(128))[1](bars)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(y_bias_bar, expected[1].sum(axis=(0, 1)), atol=1e-4)


@WAYS
def test_the_norm_alone(interpret):
    x, y, scale, bias, _, out_bar = case((2, 20, 128))
    f = functools.partial(add_layer_norm, epsilon=EPSILON, interpret=interpret, with_sum=False)
    out, vjp = jax.vjp(f, x, y, scale, bias)
    _, expected, x_bar, *expected_bars = in_f64(x, y, scale, bias, jnp.zeros_like(x), out_bar)
    for a, b in zip((out, *vjp(out_bar)), (expected, x_bar, x_bar, *expected_bars)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@WAYS
def test_bf16(interpret):
    """The kernel rounds the sum to bf16 and norms that; XLA may norm the sum as it was before rounding."""
    x, y, *rest = case((2, 20, 128), jnp.bfloat16)
    total = x + y
    expected = in_f64(total.astype(jnp.float32), 0 * total.astype(jnp.float32), *rest)
    got = ours(x, y, *rest, interpret=interpret)
    assert [a.dtype for a in got] == [jnp.bfloat16] * 3 + [jnp.float32] * 2
    np.testing.assert_array_equal(got[0], total)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-3 if interpret else 3e-2)


@WAYS
def test_variance_of_rows_that_are_far_from_zero(interpret):
    """Constant rows have variance 0, whatever the rounding of E[z^2] - E[z]^2."""
    x = jnp.full((1, 8, 128), 1000.1, jnp.float32)
    one, none = jnp.ones(128), jnp.zeros(128)
    _, out = add_layer_norm(x, None, one, none, epsilon=EPSILON, interpret=interpret)
    assert np.isfinite(out).all() and np.abs(out).max() < 1


@pytest.mark.parametrize("interpret", [pltpu.InterpretParams(), False], ids=["kernel", "plain"])
def test_inside_shard_map(interpret):
    """Rows over two axes; gradients of scale and bias, which all devices share, are summed."""
    arrays = case((4, 10, 128))
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, whole = P(("data", "fsdp")), P()

    def loss(x, y, scale, bias, sum_bar, out_bar):
        f = functools.partial(add_layer_norm, epsilon=EPSILON, interpret=interpret)
        f = jax.shard_map(f, mesh=mesh, in_specs=(rows, rows, whole, whole), out_specs=(rows, rows))
        total, out = f(x, y, scale, bias)
        return (total * sum_bar + out * out_bar).sum()

    x_bar, y_bar, scale_bar, bias_bar = jax.block_until_ready(jax.grad(loss, (0, 1, 2, 3))(*arrays))
    _, _, *expected = in_f64(*arrays)
    for a, b in zip((x_bar, y_bar, scale_bar, bias_bar), (expected[0], *expected)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=5e-5)
