"""The kernels, in the interpreter, against the plain formula: results and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vlm_jax.nn.kernels import attention
from vlm_jax.nn.kernels.plain import heads

# (batch, time, width, heads): lanes shared by two heads or held by one, heads that cross registers, a time that is no
# multiple of 8, several texts in one grid step, several tiles of queries with and without padding.
SHAPES = [
    (2, 20, 128, 2),
    (3, 8, 256, 2),
    (4, 13, 256, 4),
    (1, 16, 128, 4),
    (1, 8, 640, 8),
    (1, 288, 128, 2),
    (1, 270, 128, 1),
]
OPTIONS = [
    {},
    {"causal": True},
    {"valid": 7},
    {"key_mask": True},
    {"segment_ids": True},
    {"segment_ids": True, "key_mask": True, "causal": True, "valid": 6},
]


def formula(qkv, segment_ids=None, key_mask=None, *, num_heads, causal=False, valid=None):
    """Softmax attention with each mask as it is told, in as many steps as it takes."""
    query, key, value = heads(qkv.astype(jnp.float32), num_heads)
    time = qkv.shape[1]
    seen = np.ones((len(qkv), time, time), bool)
    if segment_ids is not None:
        seen &= (segment_ids[:, :, None] == segment_ids[:, None]) & (segment_ids[:, :, None] > 0)
    if key_mask is not None:
        seen &= key_mask[:, None]
    if causal:
        seen &= np.tri(time, dtype=bool)
    seen &= np.arange(time) < (valid or time)
    logits = jnp.einsum("bthd,bshd->bhts", query, key) * query.shape[-1] ** -0.5
    # A row without a key has weights of zero.
    weights = jnp.where(seen[:, None], jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    weights /= jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-37)
    return jnp.einsum("bhts,bshd->bthd", weights, value).reshape(len(qkv), time, -1)


def case(shape, options, dtype=jnp.float32, scale=1.0):
    batch, time, width, num_heads = shape
    random = np.random.default_rng(0)
    qkv = jnp.asarray(scale * random.normal(size=(batch, time, 3 * width)), dtype)
    out_bar = jnp.asarray(random.normal(size=(batch, time, width)), dtype)
    options = dict(options, num_heads=num_heads)
    if options.get("segment_ids"):
        options["segment_ids"] = random.integers(0, 3, (batch, time)).astype(np.int32)
    if options.get("key_mask"):
        options["key_mask"] = np.arange(time) < random.integers(1, time, (batch, 1))
        options["key_mask"][0] = False  # nothing to be seen in the first row
    return qkv, out_bar, options


def both(f, qkv, out_bar, options):
    out, vjp = jax.vjp(functools.partial(f, **options), qkv)
    return out, vjp(out_bar.astype(out.dtype))[0]


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize(
    "shape, options",
    [(shape, OPTIONS[-1]) for shape in SHAPES] + [(SHAPES[i], o) for i in (0, -2) for o in OPTIONS[:-1]],
    ids=lambda x: str(x) if isinstance(x, tuple) else "-".join(x) or "all",
)
def test_equals_the_formula(shape, options, interpret):
    qkv, out_bar, options = case(shape, options)
    expected = both(formula, qkv, out_bar, options)
    got = both(functools.partial(attention, interpret=interpret), qkv, out_bar, options)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize("shape", [(2, 20, 128, 2), (1, 8, 640, 8), (1, 270, 128, 1)], ids=str)
def test_the_gradient_of_a_bias(shape, interpret):
    """That of a bias added to every row of the projection, whose own gradient stays as it is."""
    qkv, out_bar, options = case(shape, {"segment_ids": True})
    bias = jax.random.normal(jax.random.key(0), qkv.shape[-1:])

    def biased(qkv, bias, **options):
        return attention(qkv + jax.lax.stop_gradient(bias), bias=bias, interpret=interpret, **options)

    vjp = lambda f: jax.vjp(functools.partial(f, **options), qkv, bias)[1](out_bar)
    for a, b in zip(vjp(biased), vjp(lambda qkv, bias, **options: formula(qkv + bias, **options))):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_the_gradient_of_a_bias_on_many_devices():
    """One bias for all of them; its gradient is the sum over their rows."""
    qkv, out_bar, options = case((8, 9, 128, 2), {})
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = lambda qkv, bias: attention(qkv, bias=bias, interpret=pltpu.InterpretParams(), **options)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    bias = jnp.zeros(qkv.shape[-1])
    qkv_bar, bias_bar = jax.block_until_ready(jax.vjp(mapped, qkv, bias)[1](out_bar))
    np.testing.assert_allclose(bias_bar, qkv_bar.sum(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize("interpret", [True, False], ids=["kernel", "plain"])
def test_a_query_that_sees_nothing(interpret):
    """Its result and every gradient from it are zero, and nothing is infinite beside it."""
    qkv, out_bar, _ = case((2, 16, 128, 2), {})
    segment_ids = jnp.zeros((2, 16), jnp.int32).at[1, :9].set(1)
    options = {"num_heads": 2, "segment_ids": segment_ids, "interpret": interpret}
    out, gradient = both(attention, qkv, out_bar, options)
    assert np.isfinite(out).all() and np.isfinite(gradient).all()
    for x in (out, gradient):
        assert not np.any(x[0]) and not np.any(x[1, 9:]) and np.all(np.any(x[1, :9], axis=-1))


@pytest.mark.parametrize("shape", [(2, 20, 128, 2), (1, 8, 1152, 16)], ids=str)
def test_bf16(shape):
    """Half a percent of the largest entry: probabilities and their gradient are rounded to bf16 for the products."""
    qkv, out_bar, options = case(shape, {"valid": 7}, jnp.bfloat16)
    expected = both(formula, qkv.astype(jnp.float32), out_bar.astype(jnp.float32), options)
    got = both(functools.partial(attention, interpret=True), qkv, out_bar, options)
    for a, b in zip(got, expected):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=5e-3 * float(jnp.abs(b).max()))


def test_large_logits():
    """Logits of a thousand: the softmax is shifted by its maximum, and the saved log-sum-exp keeps its precision."""
    qkv, out_bar, options = case((2, 20, 128, 2), {}, scale=12.0)
    expected = both(formula, qkv, out_bar, options)
    for a, b in zip(both(functools.partial(attention, interpret=True), qkv, out_bar, options), expected):
        np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("interpret", [pltpu.InterpretParams(), False], ids=["kernel", "plain"])
@pytest.mark.parametrize("options", [{}, {"segment_ids": True}], ids=["all", "segments"])
def test_inside_shard_map(options, interpret):
    """Rows over one axis, heads over another, with types checked; ids are the same for all heads.

    The plain interpreter does not keep the types inside a kernel; that for TPUs does.
    """
    qkv, out_bar, options = case((4, 9, 512, 8), options)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    by_head = qkv.reshape(4, 9, 3, 512)
    operands = [options["segment_ids"]] if "segment_ids" in options else []

    def local(qkv, *ids):
        return attention(qkv.reshape(*qkv.shape[:2], -1), *ids, num_heads=2, interpret=interpret)

    specs = (P("data", None, None, "tensor"), *[P("data")] * len(operands))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data", None, "tensor"))
    out, vjp = jax.vjp(lambda x: mapped(x, *operands), by_head)
    gradient = jax.block_until_ready(vjp(out_bar)[0])
    expected = both(formula, qkv, out_bar, options)
    np.testing.assert_allclose(out, expected[0], atol=1e-5)
    np.testing.assert_allclose(gradient.reshape(qkv.shape), expected[1], atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": 5}, "3 x 5 heads"),
        ({"num_heads": 2, "valid": 0}, "valid must be in 1..8"),
        ({"num_heads": 2, "segment_ids": jnp.ones((2, 7), jnp.int32)}, r"segment_ids must be \(2, 8\)"),
        ({"num_heads": 2, "bias": jnp.ones(128)}, r"bias must be \(384,\)"),
        ({"num_heads": 2, "key_mask": jnp.ones((1, 8), bool)}, r"key_mask must be \(2, 8\)"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        attention(jnp.zeros((2, 8, 384)), **options)
