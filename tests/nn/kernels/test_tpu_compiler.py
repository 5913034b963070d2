"""The kernels as the real TPU compiler takes them, without a TPU. Needs libtpu."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.nn import shard
from vlm_jax.nn.attention import SelfAttention
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.kernels import add_layer_norm, attention
from vlm_jax.nn.kernels.geometry import VMEM_BYTES, Geometry, supports
from vlm_jax.nn.mlp import Mlp


def compiled(f, devices, *shapes):
    """The program of `f`'s gradient over the devices, its arguments split by rows."""
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=(P("data"),) * len(shapes), out_specs=P("data"))
    loss = lambda *args: mapped(*args).astype(jnp.float32).sum()
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for shape, dtype in shapes]
    return jax.jit(jax.grad(loss)).lower(*shapes).compile()


def kernels(program) -> set[str]:
    return set(re.findall(r"([^/\"]+)/pallas_call", program.as_text()))


def both(name: str) -> set[str]:
    return {name.format("forward"), name.format("backward")}


def test_a_vision_layer(tpu):
    """Sum, norm, projection, attention: all kernels are there, named with what each device has of the batch."""

    def layer(x, y, weight):
        width = x.shape[-1]
        total, h = add_layer_norm(x, y, jnp.ones(width), jnp.zeros(width), epsilon=1e-6)
        return total + attention(h @ weight[0], num_heads=12, valid=196)

    x = ((8, 200, 768), jnp.bfloat16)
    program = compiled(layer, tpu("v5e:2x2"), x, x, ((4, 768, 3 * 768), jnp.bfloat16))
    assert kernels(program) == both("attention_{}_b2_t200_h12x64_k196") | both("add_norm_{}_b2_t200_d768")


@pytest.mark.parametrize(
    "topology, batch, time, width, num_heads, options",
    [
        ("v5e:2x2", 32, 64, 768, 12, {"causal": True}),
        ("v6e:2x2", 4, 256, 1152, 16, {}),
        ("v6e:2x2", 4, 196, 1024, 8, {"segment_ids": True}),
        pytest.param("v5e:2x2", 4, 729, 1152, 16, {}, marks=pytest.mark.full),
    ],
)
def test_attention(tpu, topology, batch, time, width, num_heads, options):
    """Text, So400m/14 at 224 and at 384 (padded to whole tiles), and packed sequences of an uneven length."""
    masked = options.pop("segment_ids", False)
    ids = [((batch, time), jnp.int32)] if masked else []
    program = compiled(
        lambda qkv, *ids: attention(qkv, *ids, num_heads=num_heads, **options),
        tpu(topology),
        ((batch, time, 3 * width), jnp.bfloat16),
        *ids,
    )
    padded = 736 if time == 729 else time
    flags = "_causal" * options.get("causal", False) + "_masked" * masked
    name = f"_b{batch // 4}_t{padded}_h{num_heads}x{width // num_heads}_k{time}{flags}"
    assert kernels(program) == both("attention_{}" + name)


@pytest.mark.full
def test_long_packed_sequences(tpu):
    """Splash attention on each of several devices, and nothing that has a place for every pair of tokens."""
    time, width = 2048, 768
    init = initializers("clip", width=width, depth=2)
    options = {"causal": False, "bias": True, "remat": False, "dtype": "bfloat16", "init": init}
    layer = Functional(SelfAttention, width, 12, **options)
    mesh = Mesh(np.array(tpu("v5e:2x2")), ("data",), axis_types=(AxisType.Auto,))
    place = lambda shape, dtype, *axes: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))
    params = jax.tree.map(lambda x: place(x.shape, x.dtype), jax.eval_shape(layer.init, jax.random.key(0)))
    x, ids = place((8, time, width), jnp.bfloat16, "data"), place((8, time), jnp.int32, "data")
    with shard.under(mesh):
        loss = lambda params, x, ids: layer(params, x, ids).astype(jnp.float32).sum()
        program = jax.jit(jax.grad(loss, (0, 1))).lower(params, x, ids).compile()
    assert {name.partition("_")[0] for name in kernels(program)} == {"splash"}
    pairs = program.memory_analysis().temp_size_in_bytes / (2 * time * time * 2)
    assert pairs < 2 * 12, "as much as the weights of every head, for two sequences a device, in bf16"


@pytest.mark.parametrize(
    "topology, time, width, hidden, activation",
    [
        ("v6e:2x2", 50, 256, 1024, "gelu_tanh"),
        ("v5p:2x2x1", 64, 256, 768, "gelu_tanh"),
        ("v5e:2x2", 64, 128, 256, "gelu"),
        pytest.param("v5e:2x2", 64, 128, 256, "quick_gelu", marks=pytest.mark.full),
        pytest.param("v5e:2x2", 196, 1024, 4096, "gelu_tanh", marks=pytest.mark.full),
        pytest.param("v5p:2x2x1", 196, 768, 3072, "gelu_tanh", marks=pytest.mark.full),
    ],
)
def test_perceptron(tpu, topology, time, width, hidden, activation):
    """On one core and on two, with sequences that do not fill registers; at the sizes that need the most memory."""
    options = {"activation": activation, "init": initializers("clip", width=width, depth=2), "dtype": "bfloat16"}
    mlp = Functional(Mlp, width, hidden, remat=True, **options)
    mesh = Mesh(np.array(tpu(topology)), ("data",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((16, time, width), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P()))
    params = jax.tree.map(place, jax.eval_shape(mlp.init, jax.random.key(0)))
    with shard.under(mesh):
        loss = lambda params, x: mlp(params, x).astype(jnp.float32).sum()
        program = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
    # The loss is a sum: nothing of the forward pass is needed for its gradient.
    assert kernels(program) == {f"perceptron_backward_b4_t{time}_d{width}x{hidden}_{activation}"}


def test_what_fits():
    assert supports(1024, 768, 12, 2) and supports(729, 1152, 16, 2)
    assert not supports(2048, 768, 12, 2)
    assert Geometry(1, 1024, 768, 12, 1024, 2, masked=True).vmem_bytes() <= VMEM_BYTES
    assert not supports(16, 192, 3, 2) and not supports(16, 128, 32, 2)
