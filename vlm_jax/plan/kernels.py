"""Time of Pallas kernels, which the compiler leaves out of its estimates, so that none looks free."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from vlm_jax.flops import peak_tflops
from vlm_jax.plan.hlo import WIDTHS
from vlm_jax.plan.topologies import Topology


class KernelTime(NamedTuple):
    """A kernel in a step: seconds of all its runs, and where they come from."""

    name: str
    count: float
    seconds: float
    source: str


def times(kernels: Mapping[tuple, float], topology: Topology) -> list[KernelTime]:
    """Of (name, operands, results, flops, bytes) -> runs."""
    return [_time(*kernel, count, topology) for kernel, count in kernels.items()]


def _time(name, operands, results, flops, moved, count: float, topology: Topology) -> KernelTime:
    chip = topology.chip
    if importlib.util.find_spec("vlm_jax.plan.bundles") and chip.clock:
        from vlm_jax.plan import bundles

        cycles = bundles.cycles(name, tuple(operands), topology.chip_name)
        if cycles:
            return KernelTime(name, count, count * cycles / chip.clock, "scheduled instructions")
    moved = moved or sum(map(_bytes, (*operands, *results)))
    peak = (peak_tflops(chip.kind) or 0) * 1e12
    at_best = max(flops / peak if peak else 0.0, moved / chip.memory if chip.memory else 0.0)
    return KernelTime(name, count, count * at_best, "a bound: its FLOPs at peak, or its bytes at full bandwidth")


def _bytes(shape: str) -> int:
    kind, dims = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()
    return WIDTHS[kind] * math.prod(int(n) for n in dims.split(",") if n)
