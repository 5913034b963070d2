"""The order of devices in which the next one of a ring is also the next one in the machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any


def ring_order(devices: Sequence[Any], group: int = 1) -> list[Any]:
    """The devices along a walk that enters every chip once, by single links of a TPU's torus.

    What a ring sends then takes one hop, and no two messages share a link: only so does the compiler for TPU v5e let
    the losses' messages overlap with their products. The walk closes, last chip to first, without links around the
    torus where any walk can: where a side is even, and two sides are longer than one chip. Cores of a chip follow
    one another, and so do the slices of a multi-slice machine. Devices without coordinates (CPU, GPU) keep their
    order within a process, and processes follow one another; chips that fill no box keep theirs.

    Args:
      group: consecutive devices of which each sends to its counterpart in the next group, as the losses do (their
        `group_size`). It is these steps that are single links then: the torus falls into `group` boxes, each walked
        by one member of all groups. Where there are no such boxes, the walk is that of groups of one.
    """
    by_slice = sorted(devices, key=lambda d: (getattr(d, "slice_index", None) or 0, d.process_index))
    grouped = itertools.groupby(by_slice, key=lambda d: getattr(d, "slice_index", None) or 0)
    return [device for _, members in grouped for device in _order_of_slice(list(members), group)]


def _order_of_slice(devices: list[Any], group: int) -> list[Any]:
    chips: dict[tuple[int, ...], list[Any]] = {}
    for device in devices:
        if getattr(device, "coords", None) is None or not hasattr(device, "core_on_chip"):
            return devices
        chips.setdefault(tuple(device.coords), []).append(device)
    sides = [sorted(set(side)) for side in zip(*chips)]
    if math.prod(map(len, sides)) != len(chips):
        return devices
    cores = len(devices) // len(chips)
    walk = grouped_walk(tuple(map(len, sides)), group if cores == 1 else 1)
    places = [tuple(side[i] for side, i in zip(sides, at)) for at in walk]
    return [core for place in places for core in sorted(chips[place], key=lambda d: d.core_on_chip)]


def grouped_walk(shape: tuple[int, ...], group: int) -> list[tuple[int, ...]]:
    """All points of a grid: place k of `group` equal boxes, each walked by single steps, for k = 0, 1, ..."""
    divisors = [[d for d in range(1, side + 1) if side % d == 0] for side in shape]
    cuts = [cut for cut in itertools.product(*divisors) if math.prod(cut) == group]
    boxes = [(tuple(side // d for side, d in zip(shape, cut)), cut) for cut in cuts]
    closing = [(max(box), box, cut) for box, cut in boxes if _closes(box)]
    if not closing:
        return closed_walk(shape)
    _, box, cut = min(closing)  # its counterparts in neighbouring boxes are nearest
    corners = [tuple(i * side for i, side in zip(at, box)) for at in closed_walk(cut)]
    return [tuple(map(sum, zip(corner, at))) for at in closed_walk(box) for corner in corners]


def _closes(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) <= 2 or (math.prod(shape) % 2 == 0 and sum(side > 1 for side in shape) >= 2)


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
