"""Our SigLIP B/16 training step beside big_vision's, compiled for the same TPUs by the real compiler, without a TPU.

    python -m benchmarks.step_vs_big_vision [--topology=v5e:16x16] [--pairs=32,128] [--whole] [--output=DIR]

Same towers, batch, optimizer and precision of products; each with the sharding, the loss and the layers that it has.
Times are the compiler's estimates, with Pallas kernels added, which it leaves out; messages are not in them. Towers of
2 and 3 layers are compiled and extrapolated to 12, in which all figures are linear; `--whole` compiles all 12, which
takes some minutes a program.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

MIB = 2**20
OURS, LOOP, SCAN = "vlm_jax", "big_vision", "big_vision, scan and remat"
DEPTH, FEW = 12, (2, 3)


def experiment_of(batch: int, depth: int, changes: Mapping[str, str] = MappingProxyType({})):
    """The recipe `siglip_b16` with another batch and depth, and with `changes`."""
    from vlm_jax import config as configs
    from vlm_jax.overrides import override
    from vlm_jax.plan import subject

    config = configs.load("siglip_b16:full")
    sizes = {"batch_size": batch, "task.model.image.depth": depth, "task.model.text.depth": depth}
    for key, value in {**sizes, **changes}.items():
        override(config, key, str(value))
    return subject.experiment_of(config)


def lower_ours(devices: list[Any], batch: int, depth: int, changes: Mapping[str, str] = MappingProxyType({})):
    import jax

    from vlm_jax import mesh as meshes
    from vlm_jax import program, startup

    plan = startup.make_plan(experiment_of(batch, depth, changes), devices)
    rows = meshes.batch_sharding(plan.mesh)
    spec = plan.experiment.task.batch_spec(batch)
    arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in spec.items()}
    return program.jitted_update(plan).lower(plan.placed(), arrays)


def lower_peer(devices: list[Any], batch: int, depth: int, scan: bool):
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from benchmarks import big_vision_peer

    experiment = experiment_of(batch, depth)
    make_tx = lambda params: experiment.optimizer.make(params, experiment.clock, {})[0]
    model = big_vision_peer.SigLIP(depth=depth, scan=scan)
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    return big_vision_peer.lower(model, make_tx, experiment.task.batch_spec(batch), mesh)


STEPS: dict[str, Callable] = {
    OURS: lower_ours,
    LOOP: functools.partial(lower_peer, scan=False),
    SCAN: functools.partial(lower_peer, scan=True),
}


def read(lowered: Any, topology: Any) -> dict[str, float]:
    """Numbers of one device, by name."""
    from vlm_jax.plan import hlo, kernels

    compiled = lowered.compile()
    program = hlo.read(compiled)
    seconds = sum(k.seconds for k in kernels.times(program.kernels, topology))
    found = {
        "temporaries": program.temporaries,
        "xla_ms": program.cycles / topology.chip.clock * 1e3,
        "kernels_ms": seconds * 1e3,
        "traffic": program.traffic,
    }
    for kind, values in program.by_kind().items():
        found |= {f"{kind}/{name}": value for name, value in values.items()}
    return found


def measure(which: str, topology: Any, devices: list[Any], batch: int, whole: bool) -> dict[str, Any]:
    """A row: the figures of 12 layers, or the memory that was `needed` and is not there."""
    import jax

    from vlm_jax.plan import hlo

    lower = STEPS[which]
    row = {"which": which, "topology": topology.name, "pairs": batch // len(devices)}
    try:
        if whole:
            return row | read(lower(devices, batch, DEPTH), topology)
        few, more = (read(lower(devices, batch, depth), topology) for depth in FEW)
    except jax.errors.JaxRuntimeError as error:
        needed = hlo.memory_needed(error)
        if needed is None:
            raise
        return row | {"needed": needed}
    return row | extrapolate(few, more)


def extrapolate(few: dict[str, float], more: dict[str, float]) -> dict[str, float]:
    """Of 12 layers, from 2 and 3."""
    layers = (DEPTH - FEW[0]) / (FEW[1] - FEW[0])
    names = dict.fromkeys((*few, *more))
    return {n: max(0.0, few.get(n, 0) + layers * (more.get(n, 0) - few.get(n, 0))) for n in names}


def floor_ms(topology: Any, devices: int, batch: int) -> float:
    """The model's FLOPs (three times the forward pass) at the peak of all chips."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from vlm_jax import flops
    from vlm_jax.tasks.base import Context

    task = experiment_of(batch, DEPTH).task
    mesh = Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    variables = jax.eval_shape(task.init, jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss = lambda v, b, k: task.loss(v, b, Context(key=k, step=0, total_steps=1, mesh=mesh))
    total = 3 * flops.count(loss, variables, task.batch_spec(batch), key)
    return 1e3 * total / devices / (flops.peak_tflops(topology.chip.kind) * 1e12)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; `time` is in multiples of ours."""
    lines = [
        "| pairs | step | temporaries MiB | traffic GiB | XLA ms | kernels ms | MFU at most % | time | messages MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = {row["pairs"]: row for row in rows if row["which"] == OURS}
    total = lambda row: row["xla_ms"] + row["kernels_ms"]
    for row in rows:
        first = f"| {row['pairs']} | {row['which']} "
        if "needed" in row:
            lines.append(f"{first}| does not fit: {row['needed'] / MIB:,.0f} | | | | | | |")
            continue
        mine, mfu = ours.get(row["pairs"]), 100 * row["floor_ms"] / total(row)
        cells = [
            f"{row['temporaries'] / MIB:,.0f}{'' if row['temporaries'] <= row['limit'] else ' (does not fit)'}",
            f"{row['traffic'] / 2**30:,.1f}",
            *(f"{x:.1f}" for x in (row["xla_ms"], row["kernels_ms"], mfu)),
            f"{total(row) / total(mine):.2f}" if mine else "",
            f"{sum(value for name, value in row.items() if name.endswith('/bytes')) / MIB:,.0f}",
        ]
        lines.append(f"{first}| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--pairs", default="32,128", help="a chip")
    parser.add_argument("--whole", action="store_true", help="compile all layers")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    arguments = parser.parse_args()
    from vlm_jax.plan.compile import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    from vlm_jax.plan import compile as compiling
    from vlm_jax.plan import topologies

    topology = topologies.parse(arguments.topology)
    devices = topologies.devices(topology)
    limit = compiling.memory_limit(topology, devices)
    rows = []
    for pairs in map(int, arguments.pairs.split(",")):
        batch = pairs * len(devices)
        floor = floor_ms(topology, len(devices), batch)
        for which in STEPS:
            print(f"compiling {which}, {pairs} pairs a chip", flush=True)
            rows.append(measure(which, topology, devices, batch, arguments.whole) | {"floor_ms": floor, "limit": limit})
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")}
    how = "compiled whole" if arguments.whole else f"extrapolated from {FEW[0]} and {FEW[1]} layers"
    results = {"versions": versions, "topology": topology.name, "how": how, "rows": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = f"step_vs_big_vision_{topology.name.replace(':', '_')}.json"
    (arguments.output / name).write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
