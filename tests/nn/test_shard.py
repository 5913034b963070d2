"""Logical axes over an ambient mesh: what they change where there is one, and that they change nothing elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.nn import layers, shard

MESH = Layout(data=2, fsdp=2, tensor=2).make(jax.devices())


def put(x):
    """A program runs on the devices of its arguments: a mesh that is traced under has none."""
    return jax.device_put(x, NamedSharding(MESH, P()))


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((4, 6))
    assert shard.ambient() is None and shard.ways("batch") == 1
    assert shard.constrain(x, "batch", "mlp") is x
    assert shard.per_shard(lambda x: x.shape, [("batch", None)], ("batch",))(x) == (4, 6)
    assert str(jax.make_jaxpr(lambda x: shard.constrain(x, "batch", "mlp"))(x)).count("sharding_constraint") == 0


def test_one_device_is_no_mesh():
    with shard.under(Layout().make(jax.devices()[:1])):
        assert shard.ambient() is None


def test_axes_that_do_not_divide_stay_whole():
    assert shard.spec((8, 6), ("batch", "mlp"), MESH) == P(("data", "fsdp"), "tensor")
    assert shard.spec((6, 5), ("batch", "mlp"), MESH) == P(None, None)
    assert shard.spec((8, 6), ("embed", "heads"), MESH, shard.AT_REST) == P("fsdp", "tensor")
    with pytest.raises(ValueError, match="2 logical axes"):
        shard.spec((8,), ("batch", "mlp"), MESH)


def test_constrain_lays_out_values_and_cotangents():
    def f(x):
        with shard.under(MESH):
            return jax.grad(lambda x: (shard.constrain(x, "batch", "mlp") ** 2).sum())(x)

    assert jax.jit(f)(put(jnp.ones((8, 6)))).sharding.spec == P(("data", "fsdp"), "tensor")


def test_per_shard_sees_its_part():
    seen = []

    def part(x, w):
        seen.append((x.shape, w.shape))
        return x * w

    def f(x, w):
        with shard.under(MESH):
            return shard.per_shard(part, [("batch", None, "heads"), ("heads",)], ("batch", None, "heads"))(x, w).sum()

    x, w = jax.random.normal(jax.random.key(0), (8, 3, 6)), jnp.arange(6.0)
    grads = jax.jit(jax.grad(f, argnums=(0, 1)))(put(x), put(w))
    assert seen[0] == ((2, 3, 3), (3,))
    np.testing.assert_allclose(grads[0], np.broadcast_to(w, x.shape))
    np.testing.assert_allclose(grads[1], x.sum((0, 1)), rtol=1e-5)


def test_inside_a_manual_region_nothing_happens():
    def inner(x):
        assert shard.ambient() is None
        return shard.constrain(x, "batch")

    def f(x):
        with shard.under(MESH):
            return jax.shard_map(inner, in_specs=P("data"), out_specs=P("data"))(x)

    np.testing.assert_array_equal(jax.jit(f)(put(jnp.arange(8.0))), jnp.arange(8.0))


def test_heads_must_divide():
    with shard.under(MESH), pytest.raises(UserError, match="tensor=2 does not divide the model's 3 attention heads"):
        shard.part(3, "heads", "attention heads")


@pytest.mark.parametrize(("rows", "groups"), [("embed", 1), ("rows", 3)])
def test_the_order_in_use_is_undone_at_rest(rows, groups):
    kernel = jax.random.normal(jax.random.key(0), (8, 12))

    def f(kernel):
        with shard.under(MESH):
            used = layers.to_use(kernel, (rows, "heads"), groups)
            return used, layers.to_rest(used, (rows, "heads"), groups)

    used, rest = jax.jit(f)(put(kernel))
    np.testing.assert_array_equal(rest, kernel)
    parts = np.split(np.asarray(kernel), 2 * groups, axis=1)
    first = np.concatenate(parts[::2], axis=1)  # half of each group
    assert used.sharding.spec[1] == "tensor"
    np.testing.assert_array_equal(used[:, :6], first)


@pytest.mark.parametrize(("grad_dtype", "x_dtype"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_gradients_are_summed_over_devices_in_the_dtype_asked_for(grad_dtype, x_dtype):
    def f(x, kernel):
        with shard.under(MESH, grad_dtype):
            return jax.grad(lambda k: layers.project(x, k, None, ("embed", "mlp")).astype(jnp.float32).sum())(kernel)

    x, kernel = jnp.ones((8, 16), x_dtype), jnp.ones((16, 4))
    program = jax.jit(f).lower(x, kernel).as_text()
    name = {"float32": "f32", "bfloat16": "bf16"}[grad_dtype]
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products[-1].rstrip().split("-> ")[1].startswith(f"tensor<16x4x{name}>")
    assert jax.jit(f)(put(x), put(kernel)).dtype == jnp.float32
