"""Time of Pallas kernels, which the compiler leaves out of its estimates, so that none looks free."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from vlm_jax.flops import peak_tflops
from vlm_jax.plan import bundles
from vlm_jax.plan.hlo import WIDTHS, Kernel
from vlm_jax.plan.topologies import Topology


class KernelTime(NamedTuple):
    """A kernel in a step: seconds of all its runs on one device, and where they come from."""

    name: str
    count: float
    seconds: float
    source: str


def times(kernels: Mapping[Kernel, float], topology: Topology) -> list[KernelTime]:
    """Of kernels and how often each runs: its scheduled instructions, else what its work takes at the least."""
    chip = topology.chip
    calls = [(k.name, k.operands) for k in kernels] if topology.platform == "tpu" else []
    known = bundles.cycles_of(calls, topology.chip_name) if calls else {}
    out = []
    for kernel, count in kernels.items():
        if cycles := known.get((kernel.name, kernel.operands)):
            out.append(KernelTime(kernel.name, count, count * cycles / chip.clock, "its scheduled instructions"))
        else:
            at_best = bound(kernel, topology)
            out.append(KernelTime(kernel.name, count, count * at_best, "a bound: FLOPs at peak, or bytes at full rate"))
    return out


def bound(kernel: Kernel, topology: Topology) -> float:
    """Seconds of one run at the least, by the kernel's own cost estimate, or by its operands and results."""
    moved = kernel.bytes or sum(map(_bytes, (*kernel.operands, *kernel.results)))
    peak = (peak_tflops(topology.chip.kind) or 0) * 1e12
    return max(kernel.flops / peak if peak else 0.0, moved / topology.chip.memory if topology.chip.memory else 0.0)


def _bytes(shape: str) -> int:
    kind, dims = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()
    return WIDTHS[kind] * math.prod(int(n) for n in dims.split(",") if n)
