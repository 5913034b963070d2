"""How long messages are on the wires, at the links' full bandwidth: a bound, without latency and start-up.

Within a slice of a TPU, n chips that gather V bytes receive V (n - 1) / n of them, over as many links as point into a
chip along the axes of the torus that the group spans; a reduce-scatter sends as much, an all-reduce does both. Permutes
are routed axis by axis, the shorter way round, and the fullest link counts. Between slices, and between nodes of GPUs,
the same bytes go through a device's share of the host's network.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_jax.plan.hlo import Collective
from vlm_jax.plan.topologies import Topology


def seconds(collective: Collective, topology: Topology, devices: Sequence[Any]) -> float | None:
    """Time of all runs of a collective; `devices` are the program's, in its order. None for a CPU."""
    chip, total = topology.chip, collective.bytes
    if not chip.link:
        return None
    if collective.kind == "send":
        return total / chip.network
    if collective.kind == "collective-permute":
        pairs = _pairs(collective.groups)
        outside = any(_place(devices[a], topology) != _place(devices[b], topology) for a, b in pairs)
        if outside:
            return total / chip.network
        return total * _fullest(collective.groups, topology, devices) / chip.link
    group = _group(collective.groups, len(devices))
    n = len(group)
    if n == 1:
        return 0.0
    moved = {"all-gather": 1, "reduce-scatter": n, "all-reduce": 2}.get(collective.kind, 1) * total * (n - 1) / n
    if len({_place(devices[i], topology) for i in group}) > 1:
        return moved / chip.network
    return moved / (chip.link * _links(group, topology, devices))


def _place(device: Any, topology: Topology) -> int:
    """The slice, or the node of a GPU, that a device is in."""
    if topology.platform == "tpu":
        return getattr(device, "slice_index", None) or 0
    return device.id // topology.chip.node


def _links(group: Sequence[int], topology: Topology, devices: Sequence[Any]) -> int:
    """Links that point into each chip of a group: two along every axis that closes to a ring, one along a line."""
    if topology.platform != "tpu":
        return 1
    places = np.array([devices[i].coords for i in group])
    spans = places.max(0) - places.min(0) + 1
    return max(1, sum(2 if span >= topology.chip.wraps else 1 for span in spans if span > 1))


def _fullest(pairs: str, topology: Topology, devices: Sequence[Any]) -> int:
    """How many messages of a permute the fullest link carries."""
    if topology.platform != "tpu":
        return 1
    shape = (*topology.shape, 1, 1)[:3]
    load: collections.Counter = collections.Counter()
    for source, target in _pairs(pairs):
        at, to = list(devices[source].coords), list(devices[target].coords)
        for axis, side in enumerate(shape):
            step = 1 if to[axis] > at[axis] else -1
            if side >= topology.chip.wraps and abs(to[axis] - at[axis]) > side / 2:
                step = -step
            while at[axis] != to[axis]:
                load[(*at, axis, step)] += 1
                at[axis] = (at[axis] + step) % side
    return max(load.values(), default=0)


@functools.cache
def _pairs(groups: str) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", groups)]


@functools.cache
def _group(groups: str, size: int) -> tuple[int, ...]:
    """The devices of the first group of `replica_groups=`, in any of HLO's three ways to write it; else all."""
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):
        return tuple(_iota(iota[2], iota[3]).reshape(_ints(iota[1]))[0].tolist())
    if mesh := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", groups):
        axes = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(axes.values()))
        ids = ids.reshape(tuple(axes.values()))
        over = re.findall(r"'(\w+)'", mesh[4])
        return tuple(ids[tuple(slice(None) if name in over else 0 for name in axes)].ravel().tolist())
    return tuple(range(size))


def _iota(dims: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_ints(dims))).reshape(_ints(dims))
    return ids.transpose(_ints(order)) if order else ids


def _ints(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
