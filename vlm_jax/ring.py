"""The order of devices in which the next one of a ring is also the next one in the machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any


def ring_order(devices: Sequence[Any]) -> list[Any]:
    """The devices along a walk that enters every chip once, by single links of a TPU's torus.

    What a ring sends then takes one hop, and no two messages share a link: only so does the compiler for TPU v5e let
    the losses' messages overlap with their products. The walk closes, last chip to first, without links around the
    torus where any walk can: where a side is even, and two sides are longer than one chip. Cores of a chip follow
    one another, and so do the slices of a multi-slice machine. Devices without coordinates (CPU, GPU) keep their
    order within a process, and processes follow one another; chips that fill no box keep theirs.
    """
    by_slice = sorted(devices, key=lambda d: (getattr(d, "slice_index", None) or 0, d.process_index))
    grouped = itertools.groupby(by_slice, key=lambda d: getattr(d, "slice_index", None) or 0)
    return [device for _, members in grouped for device in _order_of_slice(list(members))]


def _order_of_slice(devices: list[Any]) -> list[Any]:
    chips: dict[tuple[int, ...], list[Any]] = {}
    for device in devices:
        if getattr(device, "coords", None) is None or not hasattr(device, "core_on_chip"):
            return devices
        chips.setdefault(tuple(device.coords), []).append(device)
    sides = [sorted(set(side)) for side in zip(*chips)]
    if math.prod(map(len, sides)) != len(chips):
        return devices
    places = [tuple(side[i] for side, i in zip(sides, at)) for at in closed_walk(tuple(map(len, sides)))]
    return [core for place in places for core in sorted(chips[place], key=lambda d: d.core_on_chip)]


def closed_walk(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All points of a grid by single steps, and a single step from the last to the first where the grid allows it."""
    even = [axis for axis, side in enumerate(shape) if side % 2 == 0]
    if not even:
        return open_walk(shape)  # as on a chess board, every step changes colour: an odd walk cannot close
    axis, side = even[0], shape[even[0]]
    lane = open_walk(shape[:axis] + shape[axis + 1 :])
    # Lanes up and down without their first point, then back along the first points.
    out = [(i, at) for i in range(side) for at in (lane[1:] if i % 2 == 0 else lane[:0:-1])]
    back = [(i, lane[0]) for i in reversed(range(side))]
    return [(*at[:axis], i, *at[axis:]) for i, at in out + back]


def open_walk(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All points of a grid by single steps: every other lane backwards."""
    if not shape:
        return [()]
    rest = open_walk(shape[1:])
    return [(i, *at) for i in range(shape[0]) for at in (rest if i % 2 == 0 else rest[::-1])]
