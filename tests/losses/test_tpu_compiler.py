"""What the real TPU compiler makes of the losses, without a TPU: memory, collectives, and its estimate of the cycles.

Needs libtpu (`pip install "libtpu==0.0.42.*"` for jax 0.10.2), which compiles for any number of chips on a CPU.
"""

from __future__ import annotations

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import cross_entropy, infonce_loss, sigmoid_loss

pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")

DIM = 768
FLOPS_A_CYCLE = {"v5e": 197e12 / 1.5e9}  # peak bf16 of a chip by its clock
MIB = 2**20


@pytest.fixture(scope="module")
def chips():
    """`chips("v5e:16x16") -> devices` that programs can be compiled for, each next to the one before it."""
    from jax.experimental import topologies

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

        def describe(name: str) -> list:
            options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
            at = {tuple(d.coords[:2]): d for d in devices}
            return [at[x, y] for x, y in snake(max(x for x, _ in at) + 1, max(y for _, y in at) + 1)]

        yield describe


def snake(width: int, height: int) -> list[tuple[int, int]]:
    """A closed walk over a grid by single steps: up and down the columns, and back along the bottom."""
    if height == 1:
        return [(x, 0) for x in range(width)]
    walk = [(0, 0)]
    for x in range(width):
        walk += [(x, y) for y in (range(1, height) if x % 2 == 0 else range(height - 1, 0, -1))]
    return walk + [(x, 0) for x in range(width - 1, 0, -1)]


def compiled(loss, devices, batch: int, scalars: int, **options):
    """The program of a contrastive loss with all its gradients, bf16 features split over all devices."""
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda *a: loss(*a, axis_name="data", **options),
        mesh=mesh,
        in_specs=(P("data"), P("data"), *(P(),) * scalars),
        out_specs=P(),
    )
    features = jax.ShapeDtypeStruct((batch, DIM), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    gradients = jax.jit(jax.value_and_grad(mapped, tuple(range(2 + scalars))))
    return gradients.lower(features, features, *(number,) * scalars).compile()


def temporaries(program) -> int:
    return program.memory_analysis().temp_size_in_bytes


def cost(program) -> tuple[int, collections.Counter]:
    """Estimated cycles (without collectives), and how many of each collective run, loops counted out."""
    body, bodies, entry = None, collections.defaultdict(list), None
    for line in program.as_text().splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            body = start[2]
            entry = body if start[1] else entry
        elif body:
            bodies[body].append(line)
    cycles, collectives = 0, collections.Counter()

    def walk(name: str, times: int) -> None:
        nonlocal cycles
        for line in bodies[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(found[1])
            if found := re.search(r" (all-\w+|reduce-scatter|collective-permute)(-start|-done)?\(", line):
                collectives[found[1] + (found[2] or "")] += times
            if found := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                (trips,) = re.findall(r"s32\[\]\S* constant\((\d+)\)", " ".join(bodies[found[1]]))
                walk(found[2], times * int(trips))

    walk(entry, 1)
    return cycles, collectives


def floor(chip: str, batch: int, devices: int, products: int) -> float:
    """Cycles of so many products of a device's rows with the whole batch, at peak."""
    return products * 2 * (batch / devices) * batch * DIM / FLOPS_A_CYCLE[chip]


def test_sigmoid_of_a_million_pairs(chips):
    """A plain all-gather does not fit in the chip; a differentiated ring takes 1,723 MiB and 1.8 x the floor."""
    program = compiled(sigmoid_loss, chips("v5e:16x16"), 2**20, scalars=2)
    cycles, collectives = cost(program)
    assert temporaries(program) <= 16 * MIB
    assert set(collectives) == {"collective-permute-start", "collective-permute-done", "all-reduce"}
    assert cycles <= 1.2 * floor("v5e", 2**20, 256, products=3)


def test_sigmoid_of_small_local_batches(chips):
    program = compiled(sigmoid_loss, chips("v5e:16x16"), 2**15, scalars=2)
    assert cost(program)[0] <= 3 * floor("v5e", 2**15, 256, products=3)


def test_infonce(chips):
    """Dense, it takes 1,120 MiB."""
    program = compiled(infonce_loss, chips("v6e:16x16"), 2**17, scalars=1)
    assert temporaries(program) <= 8 * MIB
    assert "all-gather" not in cost(program)[1]


@pytest.mark.parametrize("loss, scalars", [(sigmoid_loss, 2), (infonce_loss, 1)])
def test_memory_does_not_grow_with_the_number_of_chips(chips, loss, scalars):
    few, many = (compiled(loss, chips(name), 512 * n, scalars) for name, n in (("v5e:4x8", 32), ("v5e:16x16", 256)))
    assert temporaries(few) == temporaries(many)
    assert few.memory_analysis().peak_memory_in_bytes == many.memory_analysis().peak_memory_in_bytes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_cross_entropy_over_a_large_vocabulary(chips, dtype):
    """8,192 tokens, 262,144 entries: the logits would be 8 GiB, and an f32 embedding cast at once 384 MiB."""
    sharding = NamedSharding(Mesh(np.array(chips("v5e:1x1")), ("data",)), P())
    shapes = [((8192, DIM), jnp.bfloat16), ((262144, DIM), dtype), ((8192,), jnp.int32)]
    gradients = jax.jit(jax.value_and_grad(cross_entropy, (0, 1)))
    program = gradients.lower(*(jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes)).compile()
    assert temporaries(program) <= 200 * MIB
