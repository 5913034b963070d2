"""FLOPs counted in jaxprs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax import flops
from vlm_jax.mesh import Layout

A = jax.ShapeDtypeStruct((16, 32), jnp.float32)
B = jax.ShapeDtypeStruct((32, 8), jnp.float32)
ONE = 2 * 16 * 32 * 8


def test_matrix_product():
    assert flops.count(lambda a, b: a @ b, A, B) == ONE


def test_loops_count_every_turn_and_wrappers_count_once():
    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c, jax.checkpoint(jnp.dot)(a, b).sum()), 0.0, None, length=7)

    assert flops.count(loop, A, B) == 7 * ONE
    assert flops.count(jax.jit(jnp.dot), A, B) == ONE


def test_sharded_parts_count_for_all_devices():
    mesh = Layout().make(jax.devices())
    sharded = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert flops.count(sharded, A, B) == ONE


def test_convolution():
    x, w = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 16), jnp.float32)
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert flops.count(conv, x, w) == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197), ("TPU v5", 459), ("NVIDIA H100 80GB HBM3", 989), ("cpu", None)]
)
def test_peaks(kind, peak):
    assert flops.peak_tflops(kind) == peak
