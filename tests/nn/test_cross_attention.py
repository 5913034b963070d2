import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.nn import shard
from vlm_jax.nn.cross_attention import AttentionalPooler, CrossAttention, cross_attend
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers

from .random_parameters import random_parameters

INIT = initializers("jax", width=8, depth=1)
OPTIONS = {"dtype": "float32", "init": INIT}
ATTENTION = Functional(CrossAttention, 8, 12, 2, remat=False, **OPTIONS)
POOLER = Functional(AttentionalPooler, 8, 12, 2, 5, norm_eps=1e-6, **OPTIONS)
X = np.random.default_rng(1).normal(size=(8, 4, 8)).astype(np.float32)
CONTEXT = np.random.default_rng(2).normal(size=(8, 6, 12)).astype(np.float32)


def naive(query, kv, num_heads):
    """One row, head and query at a time."""
    out = np.zeros(query.shape)
    size = query.shape[-1] // num_heads
    keys, values = np.split(kv, 2, axis=-1)
    for row in range(len(query)):
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            for i, q in enumerate(query[row, :, part]):
                weights = np.exp(keys[row, :, part] @ q / size**0.5)
                out[row, i, part] = weights / weights.sum() @ values[row, :, part]
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_equals_naive_attention(dtype, tolerance):
    kv = np.random.default_rng(3).normal(size=(8, 6, 16)).astype(np.float32)
    out = jax.jit(functools.partial(cross_attend, num_heads=2))(X.astype(dtype), kv.astype(dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(np.float32), naive(X, kv, 2), rtol=tolerance, atol=tolerance)


def test_shared_queries_are_those_of_every_row():
    kv = np.random.default_rng(3).normal(size=(8, 6, 16)).astype(np.float32)
    shared = cross_attend(X[0], kv, num_heads=2)
    each = cross_attend(np.broadcast_to(X[0], X.shape), kv, num_heads=2)
    np.testing.assert_allclose(shared, each, atol=1e-6)


def test_recomputed_weights_change_nothing():
    params = random_parameters(ATTENTION)
    again = Functional(CrossAttention, 8, 12, 2, remat=True, **OPTIONS)
    grad = lambda module: jax.jit(jax.grad(lambda p: jnp.square(module(p, X, CONTEXT)).sum()))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grad(ATTENTION), grad(again))


def test_bf16_keeps_no_weights_for_the_backward_pass():
    attention = Functional(CrossAttention, 8, 12, 2, remat=False, dtype="bfloat16", init=INIT)
    loss = lambda p: attention(p, X, CONTEXT).astype(jnp.float32).sum()
    kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], random_parameters(ATTENTION))
    assert (8, 2, 4, 6) not in {leaf.shape for leaf in jax.tree.leaves(kept)}


def loss_of(module, mesh, params, *inputs):
    with shard.under(mesh):
        out = module(params, *inputs)
        return (jnp.arange(8.0) * out * out).sum()


@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=2, tensor=2, min_size=1), Layout(fsdp=8, data=1, min_size=1)])
@pytest.mark.parametrize(("module", "inputs"), [(ATTENTION, (X, CONTEXT)), (POOLER, (CONTEXT,))])
def test_on_a_mesh_equals_one_device(layout, module, inputs):
    params = random_parameters(module)
    wanted = jax.jit(jax.value_and_grad(functools.partial(loss_of, module, None)))(params, *inputs)
    mesh = layout.make(jax.devices())
    places = partition.shardings({"attn": params}, layout, mesh, {})["attn"]
    placed = [jax.device_put(x, meshes.batch_sharding(mesh)) for x in inputs]
    step = jax.jit(jax.value_and_grad(functools.partial(loss_of, module, mesh)), out_shardings=(None, places))
    found = step(jax.device_put(params, places), *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), jax.device_get(found), wanted)


def test_heads_that_tensor_does_not_divide_are_named():
    mesh = Layout(tensor=4).make(jax.devices())
    with pytest.raises(UserError, match="tensor=4 does not divide the model's 2 heads of the cross-attention"):
        jax.eval_shape(functools.partial(loss_of, ATTENTION, mesh), random_parameters(ATTENTION), X, CONTEXT)
