"""The order of devices in a ring, on made-up machines and on those that the TPU compiler knows."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax import mesh as meshes
from vlm_jax.mesh import Layout
from vlm_jax.ring import ring_order


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `ring_order` looks at."""

    id: int
    coords: tuple[int, ...] | None = None
    core_on_chip: int = 0
    slice_index: int | None = None
    process_index: int = 0


def machine(shape, cores=1, slice_index=None, offset=0) -> list[Chip]:
    places = itertools.product(*(range(offset, offset + side) for side in shape))
    found = [Chip(0, at, core, slice_index) for at in places for core in range(cores)]
    return [dataclasses.replace(chip, id=i) for i, chip in enumerate(found)]


def hops(devices) -> list[int]:
    """Links between each device and the next, without those around the torus; the last is the way back."""
    at = np.array([d.coords for d in devices])
    return np.abs(at - np.roll(at, -1, axis=0)).sum(axis=1).tolist()


def can_close(shape) -> bool:
    return math.prod(shape) % 2 == 0 and sum(side > 1 for side in shape) >= 2


SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(0, 3), st.randoms())
def test_every_hop_is_one_link(shape, offset, random):
    given = machine(shape, offset=offset)
    random.shuffle(given)
    order = ring_order(given)
    assert sorted(d.id for d in order) == sorted(d.id for d in given)
    *within, back = hops(order)
    assert all(hop == 1 for hop in within)
    if can_close(shape):
        assert back == 1


@settings(deadline=None, max_examples=20)
@given(SHAPES)
def test_cores_of_a_chip_follow_one_another(shape):
    order = ring_order(machine(shape, cores=2))
    assert [d.core_on_chip for d in order] == [0, 1] * math.prod(shape)
    assert all(a.coords == b.coords for a, b in zip(order[::2], order[1::2]))
    assert max(hops(order)[:-1]) <= 1


def test_slices_follow_one_another():
    slices = [machine((4, 4), slice_index=i) for i in range(3)]
    order = ring_order([d for chips in zip(*slices) for d in chips])
    assert [d.slice_index for d in order] == [0] * 16 + [1] * 16 + [2] * 16
    assert all(hops(order[i : i + 16]) == [1] * 16 for i in (0, 16, 32))


def test_devices_without_coordinates_keep_their_order_by_process():
    assert ring_order(jax.devices()[::-1]) == jax.devices()[::-1]
    devices = [Chip(i, process_index=i % 2) for i in (3, 0, 2, 1)]
    assert [d.id for d in ring_order(devices)] == [0, 2, 3, 1]


def test_chips_that_fill_no_box_keep_their_order():
    given = machine((4, 4))[:13]
    assert ring_order(given) == given


def test_one_device():
    (chip,) = machine((1, 1, 1))
    assert ring_order([chip]) == [chip]


@pytest.mark.parametrize("layout", [Layout(), Layout(data=1, fsdp=-1)])
def test_a_mesh_of_one_axis_follows_the_ring(layout):
    chips = machine((4, 4, 2))
    assert hops(layout.make(chips).devices.ravel()) == [1] * 32


@pytest.mark.parametrize("layout", [Layout(fsdp=4), Layout(tensor=2)])
def test_a_mesh_of_more_axes_keeps_the_order_given(layout):
    chips = machine((4, 4))
    assert layout.make(chips).devices.ravel().tolist() == chips


@pytest.mark.parametrize(
    "name", ["v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:16x16", "v6e:16x16", "v4:2x2x4", "v5:2x2x1", "v5:4x4x8", "v3:4x4"]
)
def test_real_machines(name, tpu):
    devices = tpu(name)
    order = meshes.ring_order(devices)
    assert {d.id for d in order} == {d.id for d in devices} and len(order) == len(devices)
    cores = 1 + max(d.core_on_chip for d in devices)
    assert hops(order[::cores]) == [1] * (len(devices) // cores)
    assert hops(order) == ([0] * (cores - 1) + [1]) * (len(devices) // cores)


def hops_of_groups(order, group) -> list[list[int]]:
    """For each member of the groups, the links from one group to the next; the last is the way back."""
    return [hops(order[k::group]) for k in range(group)]


@pytest.mark.parametrize(
    "shape, group",
    [((16, 16), 16), ((16, 16), 4), ((4, 4), 4), ((8, 8), 2), ((4, 4, 8), 8), ((2, 4), 4), ((16, 16), 128)],
)
def test_from_group_to_group_every_hop_is_one_link(shape, group):
    order = ring_order(machine(shape), group)
    assert sorted(d.id for d in order) == list(range(math.prod(shape)))
    assert hops_of_groups(order, group) == [[1] * (math.prod(shape) // group)] * group


def test_members_of_a_group_are_near():
    order = ring_order(machine((16, 16)), 16)
    assert max(max(hops(order[i : i + 16])) for i in range(0, 256, 16)) == 4


@pytest.mark.parametrize("group", [3, 16, 64])
def test_groups_that_make_no_boxes_get_the_walk_of_one(group):
    given = machine((4, 4))
    assert ring_order(given, group) == ring_order(given)
