import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.mesh import Layout
from vlm_jax.nn import shard
from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.mlp import Mlp
from vlm_jax.plan import hlo

X = np.linspace(-4, 4, 41)
FORMULAS = {
    "gelu": [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in X],
    "gelu_tanh": [x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2 for x in X],
    "quick_gelu": [x / (1 + math.exp(-1.702 * x)) for x in X],
    "squared_relu": [max(x, 0) ** 2 for x in X],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), FORMULAS[name], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputing_changes_no_number(dtype):
    """In bf16 products of weights' gradients are f32 sums either way; only their order may differ."""
    init = initializers("clip", width=32, depth=2)
    options = {"activation": "gelu_tanh", "dtype": dtype, "init": init}
    kept, again = (Functional(Mlp, 32, 64, remat=remat, **options) for remat in (False, True))
    params = kept.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 6, 32))
    loss = lambda mlp: jax.value_and_grad(lambda p, x: (mlp(p, x).astype(jnp.float32) ** 2).sum(), (0, 1))(params, x)
    for a, b in zip(jax.tree.leaves(loss(kept)), jax.tree.leaves(loss(again)), strict=True):
        assert a.dtype == b.dtype
        scale = float(jnp.abs(a).max())
        np.testing.assert_allclose(a, b, atol=scale * (1e-6 if dtype == "float32" else 1e-2))


@pytest.mark.parametrize("rows", [8, 3], ids=["split", "not split"])
@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=4), Layout(data=8), Layout(data=1, fsdp=8)])
def test_recomputing_over_devices_changes_no_number(layout, rows):
    init = initializers("clip", width=32, depth=2)
    mlp = Functional(Mlp, 32, 64, remat=True, activation="gelu", dtype="float32", init=init)
    params, x = mlp.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (rows, 6, 32))
    mesh = layout.make(jax.devices())

    def gradients(p, x, over=None):
        with shard.under(over):
            return jax.grad(lambda p, x: (mlp(p, x) ** 2).sum(), (0, 1))(p, x)

    place = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))
    split = jax.jit(functools.partial(gradients, over=mesh))(*jax.tree.map(place, (params, x)))
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(gradients(params, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_of_matrices_are_scattered_and_not_summed_whole(tpu):
    """Matrices of 16 MiB in 8 parts, two copies of each: the sums of parts, and those of their copies."""
    mesh = Layout(data=2, fsdp=8).make(tpu("v5e:4x4"))
    init = initializers("clip", width=1024, depth=2)
    mlp = Functional(Mlp, 1024, 4096, remat=True, activation="gelu", dtype="bfloat16", init=init)
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    where = {"fc1": {"kernel": place("fsdp"), "bias": place()}, "fc2": {"kernel": place(None, "fsdp"), "bias": place()}}
    like = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    params = jax.tree.map(like, jax.eval_shape(mlp.init, jax.random.key(0)), where)
    x = jax.ShapeDtypeStruct((16, 128, 1024), jnp.bfloat16, sharding=place(("data", "fsdp")))

    def gradients(params, x):
        with shard.under(mesh):
            return jax.grad(lambda p: (mlp(p, x).astype(jnp.float32) ** 2).sum())(params)

    sent = hlo.read(jax.jit(gradients, out_shardings=where).lower(params, x).compile()).by_kind()
    parts = 2 * 1024 * 4096 * 4 // 8
    assert parts <= sent["reduce-scatter"]["bytes"] <= 1.1 * parts
    assert parts <= sent["all-reduce"]["bytes"] <= 1.1 * parts


def test_recomputing_keeps_less():
    mlp = lambda remat: Functional(
        Mlp, 32, 256, activation="gelu", dtype="float32", init=initializers("clip", width=32, depth=2), remat=remat
    )
    params, x = mlp(False).init(jax.random.key(0)), jnp.zeros((4, 6, 32))

    def kept(remat):
        pull = jax.vjp(mlp(remat), params, x)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(False) - kept(True) >= 4 * 6 * 256
