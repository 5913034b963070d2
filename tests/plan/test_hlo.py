"""What is read of compiled programs, held to programs whose content is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.plan import hlo


def mesh_of(devices) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def shape(mesh, *dims, spec=P("data"), dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))


def ring(mesh, turns: int):
    """`turns` times a permute of [8, 128] f32 a device, and a matrix product."""
    to = [(i, (i + 1) % mesh.size) for i in range(mesh.size)]

    def local(x, w):
        hop = lambda x, _: (jax.lax.ppermute(x, "data", to) + x @ w, None)
        return jax.lax.scan(hop, x, None, length=turns)[0]

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")))


def compile_ring(devices, turns: int) -> hlo.Program:
    mesh = mesh_of(devices)
    arguments = shape(mesh, 8 * mesh.size, 128), shape(mesh, 128, 128, spec=P())
    return hlo.read(ring(mesh, turns).lower(*arguments).compile())


def test_a_loop_counts_as_often_as_it_turns():
    program = compile_ring(jax.devices()[:4], 7)
    assert program.by_kind()["collective-permute"]["count"] == 7
    assert program.by_kind()["collective-permute"]["bytes"] == 7 * 8 * 128 * 4
    assert program.unknown_loops == 0
    assert program.cycles == 0  # the compiler for CPUs estimates none
    assert program.arguments == (8 * 128 + 128 * 128) * 4


def test_a_loop_of_unknown_length_is_said():
    program = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x * 2, x))
    assert hlo.read(program.lower(jnp.ones(4)).compile()).unknown_loops == 1


def test_cycles_of_a_tpu_grow_with_the_loop(tpu):
    five, ten = (compile_ring(tpu("v5e:2x2"), turns) for turns in (5, 10))
    assert 0 < five.cycles < ten.cycles <= 2.2 * five.cycles
    assert five.traffic <= ten.traffic
    assert [p.by_kind()["collective-permute"]["count"] for p in (five, ten)] == [5, 10]


def test_traffic_is_what_a_sum_moves(tpu):
    """Two arrays in, one out: there is nothing to save."""
    mesh = mesh_of(tpu("v5e:1x1"))
    big = shape(mesh, 8192, 8192, spec=P())
    program = hlo.read(jax.jit(jnp.add).lower(big, big).compile())
    assert program.traffic == 3 * 8192 * 8192 * 4
    assert program.temporaries < 2**20


def test_traffic_of_a_slice_is_the_slice(tpu):
    mesh = mesh_of(tpu("v5e:1x1"))
    stack, one = shape(mesh, 64, 1024, 1024, spec=P()), shape(mesh, 1024, 1024, spec=P())
    walk = lambda stack, one: jax.lax.scan(lambda x, layer: (x * layer, None), one, stack)[0]
    program = hlo.read(jax.jit(walk).lower(stack, one).compile())
    assert 64 * 1024 * 1024 * 4 <= program.traffic <= 4 * 64 * 1024 * 1024 * 4


@pytest.mark.parametrize("turns", [1, 6])
def test_kernels_by_name_and_shape(tpu, turns):
    mesh = mesh_of(tpu("v5e:1x1"))

    def double(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def kernel(x):
        cost = pl.CostEstimate(flops=11, bytes_accessed=22, transcendentals=0)
        return pl.pallas_call(double, out_shape=x, name="twice", cost_estimate=cost)(x)

    def f(x):
        return jax.lax.scan(lambda x, _: (kernel(x) + 1, None), x, None, length=turns)[0]

    program = hlo.read(jax.jit(f).lower(shape(mesh, 64, 256, spec=P(), dtype=jnp.bfloat16)).compile())
    (found,) = program.kernels
    assert (found.name, found.operands, found.results) == ("twice", ("bf16[64,256]",), ("bf16[64,256]",))
    assert (found.flops, found.count) == (11, turns) and 0 <= found.moved <= turns * 2 * 64 * 256 * 2


def test_kernels_move_what_does_not_stay_on_the_chip():
    line = (
        "  %twice.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%a, %b), "
        'custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/twice/pallas_call"}'
    )
    parameters = "\n".join(f"  %{name} = bf16[8,128]{{1,0}} parameter({i})" for i, name in enumerate("ab"))
    module = hlo.parse(f"ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {{\n{parameters}\n{line}\n}}")
    (found,) = hlo._count(module)["kernels"]
    assert (found.count, found.moved) == (1, 2 * 8 * 128 * 2)


@pytest.mark.parametrize("groups, counts", [("{{0},{1}}", 0), ("[2,1]<=[2]", 0), ("{{0,1}}", 1), ("[1,2]<=[2]", 1)])
def test_a_device_alone_sends_nothing(groups, counts):
    line = f"ROOT %r = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
    module = hlo.parse(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n  {line}\n}}")
    assert len(hlo._count(module)["collectives"]) == counts


LOOP = """
%more (p: (u32[], f32[8])) -> pred[] {{
  %bound = u32[] constant(16)
  %p = (u32[], f32[8]{{0}}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}}

%turn (p: (u32[], f32[8])) -> (u32[], f32[8]) {{
  %p = (u32[], f32[8]{{0}}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %step = u32[] constant({step})
  %next = u32[] add(%i, %step)
  %y = f32[8]{{0}} collective-permute(%x), source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %both = (u32[], f32[8]{{0}}) tuple(%next, %y)
}}

ENTRY %main (p: (u32[], f32[8])) -> (u32[], f32[8]) {{
  %p = (u32[], f32[8]{{0}}) parameter(0)
  ROOT %loop = (u32[], f32[8]{{0}}) while(%p), condition=%more, body=%turn
}}
"""


@pytest.mark.parametrize("step, turns", [(1, 16), (2, 8), (3, 6)])
def test_an_unrolled_loop_turns_less_often(step, turns):
    (found,) = hlo._count(hlo.parse(LOOP.format(step=step)))["collectives"]
    assert found.count == turns


def test_a_scatter_of_sums_is_no_all_reduce(tpu):
    """TPUs have it as an all-reduce in a fusion that keeps a part."""
    mesh = mesh_of(tpu("v5e:2x4"))
    scatter = functools.partial(jax.lax.psum_scatter, axis_name="data", tiled=True)
    whole = shape(mesh, 8192, 8192, spec=P())
    scattered = jax.jit(jax.shard_map(scatter, mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False))
    (found,) = hlo.read(scattered.lower(whole).compile()).collectives
    assert (found.kind, found.bytes, found.asynchronous) == ("reduce-scatter", 8192 * 8192 * 4 // 8, False)


def test_an_all_reduce_lists_its_devices_and_operation():
    mesh = mesh_of(jax.devices()[:8])
    total = jax.shard_map(
        functools.partial(jax.lax.psum, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    (found,) = hlo.read(jax.jit(total).lower(shape(mesh, 8, 1000)).compile()).collectives
    assert (found.kind, found.count, found.bytes, found.asynchronous) == ("all-reduce", 1, 4000, False)
    assert "psum" in found.operation
    assert found.groups


def test_memory_needed_is_read_from_the_error():
    error = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, ... (31.31G) exceeds available HBM (15.75G)"
    assert hlo.memory_needed(RuntimeError(error)) == int(31.31 * 2**30)
    assert hlo.memory_needed(RuntimeError("something else")) is None


def test_elements_of_a_tuple():
    assert hlo.elements("((bf16[8,128]{1,0:T(8,128)(2,1)}), f32[2]{0}, /*index=2*/u32[])") == [
        "(bf16[8,128]{1,0:T(8,128)(2,1)})",
        "f32[2]{0}",
        "u32[]",
    ]
    assert hlo.size("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, pred[3])") == 2051
    assert hlo.main_memory("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, pred[3])") == 3
