"""What the guards of the step cost, as a share of its time.

    python -m benchmarks.guards [--topology=v5e:1x1] [--pairs=128] [--whole] [--blocks=30] [--output=DIR]

On a TPU chip by its compiler's estimate of cycles, without a TPU: the arithmetic of all guards compiled by itself, and
(`--whole`, some minutes) the step of `siglip_b16` with all guards, less that without. Guards see scalars, so what they
add does not depend on depth: towers of 2 layers are compiled, and what is added is held against the step of 12 layers,
as benchmarks/results/step_changes_*.json has it. `--blocks=N` runs the step of `siglip_tiny` here with and without, in
turns; of each the fastest block counts, which other work on the machine disturbs least.
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

from benchmarks.step_vs_big_vision import FEW, lower_ours, read

RESULTS = pathlib.Path("benchmarks/results")
# Guards that drop updates which are not finite are in every step.
ALL = {
    "guards.clip": "health.guards.Clip",
    "guards.spikes": "health.guards.Spikes",
    "guards.spikes.action": "rewind",
}


def step_ms(topology: Any, pairs: int) -> float:
    """Of the step without guards, as `benchmarks.step_changes` has found it."""
    path = RESULTS / f"step_changes_{topology.name.replace(':', '_')}.json"
    found = json.loads(path.read_text())
    if found["pairs"] != pairs:
        raise SystemExit(f"{path} is of {found['pairs']} pairs, not {pairs}")
    (row,) = [row for row in found["rows"] if row["step"] == "ours"]
    return row["xla_ms"] + row["kernels_ms"]


def by_themselves(topology: Any, devices: list[Any], pairs: int) -> dict[str, Any]:
    """Milliseconds of the guards' arithmetic, compiled alone."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from vlm_jax.health import guards
    from vlm_jax.plan import hlo

    setting = guards.Guards(clip=guards.Clip(), spikes=guards.Spikes(action="rewind"))
    on_chip = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(devices[0]))
    memory = jax.tree.map(on_chip, jax.eval_shape(setting.empty))
    scalar = on_chip(jax.ShapeDtypeStruct((), jnp.float32))
    judge = jax.jit(lambda memory, loss, norm: guards.judge(setting, memory, loss, norm))
    program = hlo.read(judge.lower(memory, scalar, scalar).compile())
    return _row(step_ms(topology, pairs), program.cycles / topology.chip.clock * 1e3)


def in_the_step(topology: Any, devices: list[Any], pairs: int) -> dict[str, Any]:
    """What a step with them takes more."""
    total = lambda found: found["xla_ms"] + found["kernels_ms"]
    batch = pairs * len(devices)
    without, guarded = (total(read(lower_ours(devices, batch, FEW[0], change), topology)) for change in ({}, ALL))
    return _row(step_ms(topology, pairs), guarded - without)


def _row(step: float, added: float) -> dict[str, float]:
    return {"step_ms": step, "guards_ms": added, "percent": 100 * added / step}


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
    return _row(fastest["without"], fastest["with"] - fastest["without"])


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| step | ms | all guards add, ms | % |", "|---|---|---|---|"]
    for title, row in results["rows"].items():
        lines.append(f"| {title} | {row['step_ms']:.2f} | {row['guards_ms']:.4f} | {row['percent']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--pairs", type=int, default=128, help="a chip")
    parser.add_argument("--whole", action="store_true", help="compile steps with and without as well")
    parser.add_argument("--blocks", type=int, default=0, help="of 5 steps of siglip_tiny on this machine")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    from vlm_jax.plan.compile import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    from vlm_jax.plan import topologies

    topology = topologies.parse(arguments.topology)
    devices = topologies.devices(topology)
    title = f"siglip_b16, {arguments.pairs} pairs, {topology.name}"
    rows = {f"{title}, guards compiled alone": by_themselves(topology, devices, arguments.pairs)}
    if arguments.whole:
        rows[f"{title}, steps compared"] = in_the_step(topology, devices, arguments.pairs)
    if arguments.blocks:
        rows["siglip_tiny, 128 pairs, this machine"] = on_this_machine(arguments.blocks)
    results = {"versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")}, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "guards.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
