"""Names of hardware, and what Google calls the same."""

import math

import pytest

from vlm_jax.errors import UserError
from vlm_jax.launch.topology import FLAT, Topology
from vlm_jax.plan.topologies import CHIPS
from vlm_jax.plan.topologies import parse as plan

# From Google's pages on TPU versions and on planning TPUs in GKE.
GOOGLE = {
    # name: accelerator type, GKE label, machine type, machines a slice, chips a machine
    "v4:2x2x1": ("v4-8", "tpu-v4-podslice", "ct4p-hightpu-4t", 1, 4),
    "v4:2x2x4": ("v4-32", "tpu-v4-podslice", "ct4p-hightpu-4t", 4, 4),
    "v5e:1x1": ("v5litepod-1", "tpu-v5-lite-podslice", "ct5lp-hightpu-1t", 1, 1),
    "v5e:2x2": ("v5litepod-4", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 1, 4),
    "v5e:2x4": ("v5litepod-8", "tpu-v5-lite-podslice", "ct5lp-hightpu-8t", 1, 8),
    "v5e:4x4": ("v5litepod-16", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 4, 4),
    "v5e:16x16": ("v5litepod-256", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 64, 4),
    "v5p:2x2x1": ("v5p-8", "tpu-v5p-slice", "ct5p-hightpu-4t", 1, 4),
    "v5p:4x4x4": ("v5p-128", "tpu-v5p-slice", "ct5p-hightpu-4t", 16, 4),
    "v5p:8x8x8": ("v5p-1024", "tpu-v5p-slice", "ct5p-hightpu-4t", 128, 4),
    "v6e:4x8": ("v6e-32", "tpu-v6e-slice", "ct6e-standard-4t", 8, 4),
}


@pytest.mark.parametrize("name", GOOGLE)
def test_what_google_calls_it(name):
    t = Topology.parse(name)
    assert (t.accelerator_type, t.tpu.label, t.machine_type, t.hosts, t.chips_per_host) == GOOGLE[name]


@pytest.mark.parametrize("kind", ["v5e", "v6e"])
@pytest.mark.parametrize("shape", FLAT)
def test_machines_have_all_the_chips(kind, shape):
    t = Topology.parse(f"3*{kind}:{shape}")
    assert t.hosts * t.chips_per_host == t.chips == math.prod(map(int, shape.split("x")))
    assert t.devices == 3 * t.chips and str(t) == f"3*{kind}:{shape}"


def test_v5_is_v5p():
    """The compiler's own name for it."""
    assert Topology.parse("v5:4x4x4") == Topology.parse("v5p:4x4x4")


def test_gpus_and_processes():
    assert Topology.parse("4*h100:8").devices == 32
    assert Topology.parse("h100:32") == Topology.parse("4*h100:8")
    assert Topology.parse("cpu:2").devices == 2


def test_names_are_those_of_the_plan():
    """Whatever was planned can be launched, but for single chips of v4 and v5p, which nobody lets."""
    planned = [f"2*{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.shapes if shape != "1x1x1"]
    planned += [f"{kind}:8" for kind, chip in CHIPS.items() if not chip.shapes]
    assert len(planned) > 40
    for name in planned:
        assert Topology.parse(name).devices == plan(name).size


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e", "write KIND:SHAPE"),
        ("v5e:0x4", "write KIND:SHAPE"),
        ("0*v5e:4x4", "write KIND:SHAPE"),
        ("v6:4x4", "did you mean 'v6e'"),
        ("v7x:4x4", "no hardware 'v7x'"),
        ("v5e:3x3", "v5e slices are 1x1, 2x2,"),
        ("v6e:4x4x4", "v6e slices are 1x1, 2x2,"),
        ("v4:4x4", "three ascending multiples of 4"),
        ("v4:8x4x4", "three ascending multiples of 4"),
        ("v4:2x2x8", "three ascending multiples of 4"),
        ("v4:16x16x20", "at most 4096 chips"),
        ("h100:2x4", "takes one number"),
        ("2*cpu:2", "write cpu:4"),
        ("h100:12", "a node has at most 8 GPUs"),
        ("2*h100:16", "a node has at most 8 GPUs"),
    ],
)
def test_wrong_names_say_what_there_is(name, says):
    with pytest.raises(UserError, match=says.replace("*", r"\*")) as error:
        Topology.parse(name)
    assert "\n" not in str(error.value)
