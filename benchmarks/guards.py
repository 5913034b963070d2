"""What the guards of the step cost, as a share of its time.

    python -m benchmarks.guards [--topology=v5e:1x1] [--pairs=128] [--blocks=30] [--output=DIR]

On a TPU chip by its compiler's estimate of cycles, without a TPU: the step of `siglip_b16` with all guards, less that
without. Guards see scalars, so what they add does not depend on depth: towers of 2 layers are compiled, and what is
added is held against that of 12 layers. On this machine the step of `siglip_tiny` is run with and without, in turns;
of each the fastest block counts, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import tempfile
import time
from typing import Any

from benchmarks.step_vs_big_vision import DEPTH, FEW, extrapolate, lower_ours, read

# Guards that drop updates which are not finite are in every step.
ALL = {
    "guards.clip": "health.guards.Clip",
    "guards.spikes": "health.guards.Spikes",
    "guards.spikes.action": "rewind",
}


def on_tpu(topology_name: str, pairs: int) -> dict[str, Any]:
    """Milliseconds of the step of 12 layers, and what the guards add."""
    from vlm_jax.plan import topologies

    topology = topologies.parse(topology_name)
    devices = topologies.devices(topology)
    batch = pairs * len(devices)
    few, more = (read(lower_ours(devices, batch, depth), topology) for depth in FEW)
    guarded = read(lower_ours(devices, batch, FEW[0], ALL), topology)
    whole = extrapolate(few, more)
    total = lambda found: found["xla_ms"] + found["kernels_ms"]
    added = total(guarded) - total(few)
    return {
        "topology": topology.name,
        "pairs": pairs,
        "layers": DEPTH,
        "step_ms": total(whole),
        "guards_ms": added,
        "percent": 100 * added / total(whole),
    }


def on_this_machine(blocks: int, steps: int = 5) -> dict[str, Any]:
    """The fastest block of steps of each, in milliseconds a step."""
    import jax

    from vlm_jax import config as configs
    from vlm_jax import mesh as meshes
    from vlm_jax import program, startup
    from vlm_jax.experiment import open_experiment
    from vlm_jax.overrides import override

    runs, times = {}, {"without": [], "with": []}
    for name, changes in (("without", {}), ("with", ALL)):
        config = configs.load("siglip_tiny")
        for key, value in {"data.source.size": "300", "batch_size": "128", "evals": "{}", **changes}.items():
            override(config, key, value)
        with tempfile.TemporaryDirectory() as folder:
            experiment = open_experiment(config, pathlib.Path(folder) / "assets")
        plan = startup.make_plan(experiment, jax.devices()[:1])
        rows = meshes.local_rows(plan.mesh, experiment.batch_size)
        batches = experiment.data.batches(seed=0, batch_size=experiment.batch_size, rows=rows)
        batch = next(batches)
        batches.close()
        spec = experiment.task.batch_spec(experiment.batch_size)
        batch = meshes.put({name: batch[name] for name in spec}, rows, experiment.batch_size, plan.mesh)
        update, state = program.jitted_update(plan), startup.initialise(plan)
        state, _ = jax.block_until_ready(update(state, batch))
        runs[name] = (update, batch, state)
    for _ in range(blocks):
        for name, (update, batch, state) in runs.items():
            began = time.perf_counter()
            for _ in range(steps):
                state, metrics = update(state, batch)
            jax.block_until_ready((state, metrics))
            times[name].append(1e3 * (time.perf_counter() - began) / steps)
            runs[name] = (update, batch, state)
    fastest = {name: min(values) for name, values in times.items()}
    added = fastest["with"] - fastest["without"]
    device = jax.devices()[0].device_kind
    return {
        "device": device,
        "step_ms": fastest["without"],
        "guards_ms": added,
        "percent": 100 * added / fastest["without"],
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| step | ms | all guards add, ms | % |", "|---|---|---|---|"]
    for title, row in results["rows"].items():
        lines.append(f"| {title} | {row['step_ms']:.2f} | {row['guards_ms']:.4f} | {row['percent']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1", help="'' leaves the TPU out")
    parser.add_argument("--pairs", type=int, default=128, help="a chip")
    parser.add_argument("--blocks", type=int, default=30, help="of 5 steps on this machine; 0 leaves it out")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    arguments = parser.parse_args()
    from vlm_jax.plan.compile import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    rows = {}
    if arguments.blocks:
        found = on_this_machine(arguments.blocks)
        rows[f"siglip_tiny, 128 pairs, {found['device']}"] = found
    if arguments.topology:
        found = on_tpu(arguments.topology, arguments.pairs)
        rows[f"siglip_b16, {found['pairs']} pairs, {found['topology']}, by its compiler"] = found
    results = {"versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")}, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "guards.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
