import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.nn import kernels, shard
from vlm_jax.nn.attention import SelfAttention, attend
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers

BATCH, TIME, HEADS, DIM = 2, 5, 3, 12


def run(qkv, mask=None, **options):
    return jax.jit(functools.partial(attend, num_heads=HEADS, **options))(qkv, mask)


@pytest.fixture
def qkv():
    return jax.random.normal(jax.random.key(0), (BATCH, TIME, 3 * DIM))


def reference(qkv, visible):
    """Head by head and query by query, in f64."""
    query, key, value = np.split(np.asarray(qkv, np.float64), 3, axis=-1)
    out = np.zeros_like(query)
    size = DIM // HEADS
    for b, h, t in np.ndindex(BATCH, HEADS, TIME):
        part = slice(h * size, (h + 1) * size)
        seen = np.flatnonzero(visible[b, t])
        weight = np.exp(key[b, seen, part] @ query[b, t, part] / np.sqrt(size))
        out[b, t, part] = weight @ value[b, seen, part] / weight.sum()
    return out


def test_equals_the_formula(qkv):
    visible = np.ones((BATCH, TIME, TIME), bool)
    np.testing.assert_allclose(run(qkv), reference(qkv, visible), atol=1e-6)


def test_causal_and_mask(qkv):
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)[:, None]
    visible = np.tril(np.ones((TIME, TIME), bool)) & mask
    out = run(qkv, jnp.asarray(mask), causal=True)
    np.testing.assert_allclose(out, reference(qkv, visible), atol=1e-6)


def test_a_row_with_nothing_to_see_stays_finite(qkv):
    mask = jnp.zeros((BATCH, 1, TIME), bool)
    value, grad = jax.value_and_grad(lambda qkv: run(qkv, mask).sum())(qkv)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_softmax_is_in_f32_when_the_rest_is_in_bf16(qkv):
    program = jax.jit(lambda qkv: attend(qkv, num_heads=HEADS)).lower(qkv.astype(jnp.bfloat16)).as_text()
    exponentials = re.findall(r"stablehlo\.exponential .* : tensor<.*x(\w+)>", program)
    assert exponentials == ["f32"]


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)], ids=str)
def test_long_packed_sequences_on_many_devices(shape):
    """Beyond `SPLASH_FROM` types are not checked: results and gradients are those of one device all the same."""
    options = {"causal": False, "bias": True, "remat": False, "dtype": "float32"}
    layer = Functional(SelfAttention, 16, 4, init=initializers("clip", width=16, depth=2), **options)
    params, time = layer.init(jax.random.key(0)), kernels.SPLASH_FROM
    x, x_bar = jax.random.normal(jax.random.key(1), (2, 8, time, 16))
    ids = jnp.sort(jax.random.randint(jax.random.key(2), (8, time), 0, 4), axis=1)
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    run = jax.jit(lambda params, x: jax.vjp(lambda *args: layer(*args, ids), params, x)[1](x_bar))
    with shard.under(mesh):
        place = jax.sharding.NamedSharding(mesh, jax.P())
        got = jax.block_until_ready(run(*jax.device_put((params, x), place)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(run(params, x)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
