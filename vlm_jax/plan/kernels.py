"""Time of Pallas kernels, which the compiler leaves out of its estimates, so that none looks free."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from vlm_jax.flops import peak_tflops
from vlm_jax.plan import bundles
from vlm_jax.plan.hlo import Kernel
from vlm_jax.plan.topologies import Topology

SCHEDULED = "its scheduled instructions"
AT_PEAK = "a bound: FLOPs at peak"
MOVING = "a bound: bytes at full rate"

# Products of a tile of queries and keys in JAX's splash attention, which brings no estimate of its own.
SPLASH = {"fwd": 2, "dq": 3, "dkv": 4}


class KernelTime(NamedTuple):
    """A kernel in a step: seconds of all its runs on one device, and where they come from."""

    name: str
    count: float
    seconds: float
    source: str


def times(kernels: Sequence[Kernel], topology: Topology) -> list[KernelTime]:
    """Of all runs of each kernel: what its scheduled instructions take, or where that is longer its FLOPs at peak (the
    schedule does not know when a matrix unit is busy), or moving its operands and results from and to main memory.
    """
    chip = topology.chip
    calls = [(k.name, tuple(k.operands)) for k in kernels] if topology.platform == "tpu" else []
    known = bundles.counts(calls, topology.chip_name) if calls else {}
    peak = (peak_tflops(chip.kind) or 0) * 1e12
    out = []
    for k in kernels:
        scheduled, _ = known.get((k.name, tuple(k.operands)), (0, 0))
        bounds = [
            (k.count * scheduled / chip.clock if scheduled else 0.0, SCHEDULED),
            (k.count * flops(k) / peak if peak else 0.0, AT_PEAK),
            (k.moved / chip.memory if chip.memory else 0.0, MOVING),
        ]
        seconds, source = max(bounds, key=lambda bound: bound[0])
        out.append(KernelTime(k.name, k.count, seconds, source))
    return out


def flops(kernel: Kernel) -> float:
    """Of one run, as the kernel's own estimate has them, or those of splash attention's tiles; else 0.

    Its operands begin with the table of tiles, [heads, tiles of queries, tiles of keys], and with query and key. Where
    the mask is computed, the last one has positions: it is causal, and tiles above the diagonal are left out.
    """
    found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", kernel.name)
    if kernel.flops or not found:
        return kernel.flops
    shapes = [[int(n) for n in re.findall(r"\d+", operand.partition("[")[2])] for operand in kernel.operands]
    query, key = [shape for shape, operand in zip(shapes, kernel.operands) if not operand.startswith("s")][:2]
    tiles = shapes[0][1]  # along each side
    causal = kernel.operands[-1].startswith("s32") and len(shapes[-1]) == 2
    seen = (tiles + 1) / (2 * tiles) if causal else 1
    return 2.0 * SPLASH[found[1]] * math.prod(query) * key[-2] * seen
