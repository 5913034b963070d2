"""What a run will need and take on a named machine, by compiling its train step ahead of time.

`python -m vlm_jax.main --config=NAME --plan=TOPOLOGY`; see docs/plan.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError


def plan(
    config: Mapping, topology_name: str, workdir: Path, *, full: bool = False, say: Callable[[str], None] = print
) -> int:
    """Compiles, prints the table, writes `WORKDIR/plan.json`; 0 where the run fits, 1 where it does not.

    `full` compiles the whole model at full effort, where layers are unrolled too.

    Raises:
      UserError: a wrong topology, a mesh or a batch that does not fit it, a compiler that is not installed.
    """
    from vlm_jax import config as configs
    from vlm_jax.plan import fit, subject, topologies
    from vlm_jax.plan.estimate import Compiler
    from vlm_jax.plan.result import result
    from vlm_jax.plan.subject import Change
    from vlm_jax.plan.table import gib, table
    from vlm_jax.report.format import duration

    topology = topologies.parse(topology_name)
    topologies.check_installed(topology)
    experiment = subject.experiment_of(config)
    check_layout(experiment, topology)
    cache = experiment.compilation_cache and str(Path(experiment.compilation_cache).parent / "plan")
    compiler = Compiler(experiment, configs.to_json(config), topology.name, cache)
    begin = time.monotonic()
    progress = lambda line: say(f"[{duration(time.monotonic() - begin):>6}] {line}")
    knows_total = subject.knows_its_length(experiment)
    progress(f"compiling for {topology.name}: {topology.size} x {topology.chip.kind}, {experiment.batch_size} a step")

    extrapolating = bool(compiler.depths(Change()))
    estimate = compiler(coarse=extrapolating)
    ways = []
    if extrapolating:
        needs = f"{gib(estimate.needed)} of {gib(estimate.compiled.limit)}" if estimate.needed else "an error"
        progress(f"first answer: {'fits' if estimate.fits else 'does not fit'}, {needs} ({estimate.source})")
        if estimate.fits or _near(estimate):
            estimate = compiler(whole=full)
    if not estimate.fits and estimate.needed is not None:
        progress("looking for what fits")
        ways = fit.search(compiler, experiment, topology, estimate, progress)
    out = {"config": configs.plain(config), **result(estimate, experiment, topology, knows_total=knows_total)}
    if ways:
        way = ways[0]
        progress(f"confirming {' '.join(way.change.overrides(experiment))}")
        confirmed = compiler(way.change, coarse=not full, whole=True)
        timed = compiler(way.change) if confirmed.fits and not full else confirmed
        fitting = result(timed, subject.apply(experiment, way.change), topology, knows_total=knows_total)
        flags = way.change.overrides(experiment)
        out["suggestion"] = {
            "arguments": flags,
            "confirmed": confirmed.fits,
            "confirmed_by": confirmed.source,
            **fitting,
        }
        out["suggestions"] = [_suggestion(flags, confirmed, fitting)]
    elif not estimate.fits:
        out["suggestions"] = ["nothing that was tried fits; take more or larger devices, or a smaller batch"]
    out["seconds"] = round(time.monotonic() - begin, 1)
    out["versions"] = {name: _version(name) for name in ("vlm_jax", "jax", "jaxlib", "libtpu")}
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "plan.json").write_text(json.dumps(out, indent=1))
    progress(f"written: {workdir / 'plan.json'}")
    say(table(out))
    return 0 if out["fits"] else 1


def check_layout(experiment: Any, topology: Any) -> None:
    """Raises UserError where mesh or batch do not fit so many devices; no compiler is needed to know that."""
    sizes = experiment.mesh.sizes(topology.size, f"of {topology.name}")
    ways = topology.size // sizes["tensor"]
    rows = experiment.batch_size // experiment.microbatches
    if rows % ways:
        near = [max(1, rows // ways) * ways, -(-rows // ways) * ways]
        what = "batch_size" if experiment.microbatches == 1 else "batch_size / microbatches"
        raise UserError(
            f"{what}={rows} is not divisible by the {ways} devices of {topology.name} that a batch is split over; "
            f"the nearest that are: {' or '.join(map(str, dict.fromkeys(near)))}."
        )


def _near(estimate: Any) -> bool:
    """Whether full effort may yet make it fit: low effort takes up to a fifth more."""
    return bool(estimate.needed and estimate.needed < 1.3 * estimate.compiled.limit)


def _suggestion(flags: list[str], confirmed: Any, fitting: Mapping[str, Any]) -> str:
    from vlm_jax.plan.table import gib, ms

    hbm = fitting["hbm_bytes"]
    what = f"{gib(hbm['needed'])} of {gib(hbm['limit'])}" if hbm["needed"] and hbm["limit"] else ""
    speed = f", {ms(fitting['step_ms'])} a step" if fitting.get("step_ms") else ""
    verdict = f"confirmed, {confirmed.source}" if confirmed.fits else "which the whole compile did not confirm"
    return f"{' '.join(flags)}: {what}{speed}; {verdict}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
