"""The plan as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_jax.report.format import duration

GIB = 2**30


def table(plan: Mapping[str, Any]) -> str:
    """Everything that `plan.json` says, in the order in which one asks."""
    hbm = plan["hbm_bytes"]
    rows: list[tuple[str, str]] = [("fits", _verdict(plan))]
    parts = {k: hbm[k] for k in ("params", "opt", "ema", "state", "batch", "temporaries", "code") if hbm[k]}
    rows.append(("memory", "  ".join(f"{name} {gib(size)}" for name, size in parts.items())))
    rows.append(("", f"limit {gib(hbm['limit'])} a device" if hbm["limit"] else "no limit known"))
    flops = plan["flops"]
    compiler = f"; the compiler counts {count(flops['compiler_step'])}, loops once" if flops["compiler_step"] else ""
    rows.append(("FLOPs", f"{count(flops['step'])} a step, {count(flops['example'])} an example{compiler}"))
    if plan["floor_ms"]:
        rows.append(("floor", f"{ms(plan['floor_ms'])} a step: all FLOPs at peak"))
    if plan.get("collectives") is not None:
        rows += _times(plan)
    for line in plan["assumptions"]:
        rows.append(("assumed", line))
    for line in plan.get("suggestions", []):
        rows.append(("try", line))
    rows.append(("source", f"estimates of the compiler, {plan['source']}; nothing ran"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in rows)


def _verdict(plan: Mapping[str, Any]) -> str:
    hbm, limit = plan["hbm_bytes"], plan["hbm_bytes"]["limit"]
    if plan["fits"]:
        if not limit:
            return f"yes: {gib(hbm['needed'])} a device"
        return f"yes: {gib(hbm['needed'])} of {gib(limit)}, {gib(limit - hbm['needed'])} to spare"
    if hbm["needed"] and limit and hbm["needed"] > limit:
        return f"NO: {gib(hbm['needed'])} of {gib(limit)}, {gib(hbm['needed'] - limit)} too much" + _said(plan)
    return "NO" + _said(plan)


def _said(plan: Mapping[str, Any]) -> str:
    return f" ({plan['error']})" if plan["error"] else ""


def _times(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if plan["xla_ms"] is not None:
        over = f", {plan['compute_ms'] / plan['floor_ms']:.2f} x the floor" if plan["floor_ms"] else ""
        kernels = f" = {ms(plan['xla_ms'])} XLA + {ms(plan['pallas_ms'])} Pallas" if plan["kernels"] else ""
        rows.append(("compute", f"{ms(plan['compute_ms'])}{kernels}{over}"))
    for k in plan["kernels"]:
        rows.append(("", f"{k['name']} x {k['count']:.0f}: {ms(1e3 * k['seconds'])}, {k['source']}"))
    if plan["hbm_ms"] is not None:
        rows.append(("HBM", f"{ms(plan['hbm_ms'])} to move what instructions read and write"))
    if plan["network_ms"] is not None:
        rows.append(("network", f"{ms(plan['network_ms'])}, of which {ms(plan['network_waited_ms'])} are waited for"))
    for kind, c in sorted(plan["collectives"].items(), key=lambda item: -item[1]["bytes"]):
        how = "all asynchronous" if c["asynchronous"] == c["count"] else f"{c['asynchronous']} asynchronous"
        at = f", {ms(c['ms'])}" if plan["network_ms"] is not None else ""
        rows.append(("", f"{kind} x {c['count']}: {gib(c['bytes'])}, {how}{at}"))
    if not plan["collectives"]:
        rows.append(("network", "no messages"))
    if plan["unknown_loops"]:
        rows.append(("", f"{plan['unknown_loops']} loops of unknown length are counted as one turn"))
    if plan["step_ms"] is not None:
        mfu = f", MFU at most {plan['mfu']:.0%}" if plan["mfu"] else ""
        rows.append(("step", f"{ms(plan['step_ms'])}, bound by {plan['bound']}"))
        rows.append(("speed", f"at most {plan['examples_per_s']:,.0f} examples/s{mfu}"))
        if plan["hours"] is not None:
            rows.append(
                ("recipe", f"at least {duration(3600 * plan['hours'])}, {plan['chip_hours']:,.0f} device-hours")
            )
        else:
            rows.append(("recipe", "how long it takes is known with its data: its length is in epochs"))
    return rows


def gib(size: int | float) -> str:
    for unit, worth in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= worth / 10:
            return f"{size / worth:,.2f} {unit}"
    return f"{size / 1024:,.1f} KiB"


def count(value: float) -> str:
    """A number of FLOPs: `139.3 G`."""
    for unit, worth in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= worth:
            return f"{value / worth:,.1f} {unit}FLOP"
    return f"{value / 1e6:,.1f} MFLOP"


def ms(value: float) -> str:
    return f"{value:,.1f} ms" if value >= 0.1 else f"{1e3 * value:.1f} µs"
