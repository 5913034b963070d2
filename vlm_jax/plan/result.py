"""From an estimate to the numbers of `plan.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlm_jax.experiment import Experiment
from vlm_jax.flops import peak_tflops
from vlm_jax.plan import kernels
from vlm_jax.plan.compile import used
from vlm_jax.plan.estimate import Estimate
from vlm_jax.plan.hlo import Kernel
from vlm_jax.plan.topologies import Topology

FORMAT = 1


def result(estimate: Estimate, experiment: Experiment, topology: Topology, *, knows_total: bool) -> dict[str, Any]:
    """The plan: bytes are of one device, times of one step in milliseconds; None where it is not known.

    A step takes what computes or moves data longest, and then the messages that nothing runs beside.
    """
    found, values = estimate.compiled, estimate.compiled.values
    chip, n, examples = topology.chip, topology.size, experiment.examples
    peak = (experiment.peak_tflops or peak_tflops(chip.kind) or 0.0) * 1e12
    flops = values.get("model_flops", 0.0)
    floor = 1e3 * flops / (peak * n) if peak else None
    out: dict[str, Any] = {
        "format": FORMAT,
        "estimates": True,
        "topology": topology.name,
        "devices": n,
        "batch_size": experiment.batch_size,
        "parameters": int(values.get("parameters", 0)),
        "fits": estimate.fits,
        "source": estimate.source,
        "error": found.error or None,
        "hbm_bytes": _memory(estimate),
        "flops": {
            "step": flops,
            "example": flops / examples,
            "compiler_step": values.get("compiler_flops") or None,
        },
        "floor_ms": floor,
        "compiler_options": found.options,
        "assumptions": assumptions(topology),
    }
    if not estimate.fits or not values.get("temporaries"):
        return out
    collectives, sync, overlapped = _collectives(values)
    timed = kernels.times([Kernel(*json.loads(name), *total) for name, total in found.kernels.items()], topology)
    xla = 1e3 * values["cycles"] / chip.clock if chip.clock and values["cycles"] else None
    pallas = 1e3 * sum(k.seconds for k in timed)
    # A GPU's caches keep much of what its instructions name.
    hbm = 1e3 * values["traffic"] / chip.memory if topology.platform == "tpu" else None
    compute = xla + pallas if xla is not None else floor
    network = sync + overlapped if chip.link else None
    out |= {
        "xla_ms": xla,
        "pallas_ms": pallas,
        "compute_ms": compute,
        "hbm_ms": hbm,
        "network_ms": network,
        "network_waited_ms": sync if chip.link else None,
        "collectives": collectives,
        "kernels": [k._asdict() for k in timed],
        "unknown_loops": int(values.get("unknown_loops", 0)),
        "step_ms": None,
        "bound": None,
        "examples_per_s": None,
        "mfu": None,
        "hours": None,
        "chip_hours": None,
    }
    if compute is None:
        return out
    busy = {"compute": compute, "HBM": hbm or 0.0, "network": network or 0.0}
    step = max(compute, hbm or 0.0, overlapped) + sync
    rate = 1e3 * examples / step
    out |= {"step_ms": step, "bound": max(busy, key=busy.get), "examples_per_s": rate}
    out["mfu"] = floor / step if floor else None
    if knows_total:
        out["hours"] = experiment.clock.total * step / 3.6e6
        out["chip_hours"] = out["hours"] * n
    return out


def _memory(estimate: Estimate) -> dict[str, int | None]:
    values = estimate.compiled.values
    out: dict[str, int | None] = {k: int(values.get(k, 0)) for k in ("params", "opt", "ema", "state", "batch")}
    known = "temporaries" in values
    for name in ("arguments", "temporaries", "aliased", "code"):
        out[name] = int(values[name]) if known else None
    out["needed"] = int(used(values)) if known else estimate.needed
    out["limit"] = estimate.compiled.limit or None
    return out


def _collectives(values: Mapping[str, float]) -> tuple[dict[str, dict[str, float]], float, float]:
    """By kind, and the milliseconds of those that the step waits for, and of those that other work runs beside."""
    kinds: dict[str, dict[str, float]] = {}
    times = {"sync": 0.0, "async": 0.0}
    for name in [n for n in values if n.endswith("/count")]:
        kind, how, _ = name.split("/")
        count, size = round(values[name]), round(values[f"{kind}/{how}/bytes"])
        milliseconds = 1e3 * values[f"{kind}/{how}/seconds"]
        entry = kinds.setdefault(kind, {"count": 0, "bytes": 0, "asynchronous": 0, "ms": 0.0})
        entry["count"] += count
        entry["bytes"] += size
        entry["asynchronous"] += count if how == "async" else 0
        entry["ms"] += milliseconds
        times[how] += milliseconds
    return kinds, times["sync"], times["async"]


def assumptions(topology: Topology) -> list[str]:
    """What no data sheet says and the numbers rest on."""
    chip, out = topology.chip, []
    if chip.clock and not chip.clock_known:
        out.append(f"a clock of {chip.clock / 1e9:g} GHz, which is not published for {topology.chip_name}")
    if topology.slices > 1 and not chip.network_known:
        out.append(f"{chip.network / 1e9:g} GB/s a chip between slices")
    if topology.platform == "cuda":
        out.append("compute at peak, which no GPU reaches: the compiler for GPUs estimates no time")
        if topology.size > chip.node:
            out.append(f"{chip.network / 1e9:g} GB/s a GPU between nodes of {chip.node}")
    if topology.platform == "tpu":
        out.append("messages at the links' full rate, and cycles as the compiler models them")
    return out
