"""What each change to the SigLIP B/16 training step gives on one TPU chip, by the real compiler, without a TPU.

    python -m benchmarks.step_changes [--topology=v5e:1x1] [--pairs=128] [--steps=NAME,...] [--output=DIR]

The whole step: both towers, loss and optimizer. Times are the compiler's estimates, with Pallas kernels added, which it
leaves out; towers of 2 and 3 layers are compiled and extrapolated to 12. Scanned layers are compiled whole.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.step_vs_big_vision import DEPTH, FEW, MIB, extrapolate, floor_ms, lower_ours, read

PLAIN_ATTENTION = {"vlm_jax.nn.kernels.select._geometry": lambda qkv, ids, options: None}
PLAIN_NORM = {"vlm_jax.nn.kernels.add_norm._choose": lambda kernel, plain, options, *operands: plain(*operands)}
TOWERS = ("image", "text")
WIDE = {f"task.model.{tower}.num_heads": "6" for tower in TOWERS}
SCAN = {f"task.model.{tower}.scan": "True" for tower in TOWERS}
REMAT = {name: {f"task.model.{tower}.remat": name for tower in TOWERS} for name in ("none", "block")}
# Name: what replaces our own parts, and what is set in the recipe.
STEPS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain": (PLAIN_ATTENTION | PLAIN_NORM, REMAT["none"]),
    "attention": (PLAIN_NORM, REMAT["none"]),
    "norm": ({}, REMAT["none"]),
    "ours": ({}, {}),
    "ours, 6 heads of 128": ({}, WIDE),
    "ours, blocks computed again": ({}, REMAT["block"]),
    "ours, scanned": ({}, SCAN | REMAT["block"]),
}
WORDS = {
    "plain": "plain formulas, unrolled layers",
    "attention": "and whole-image attention kernel",
    "norm": "and kernel of residual sum and norm",
    "ours": "and MLP kernel: the recipe",
}


@contextlib.contextmanager
def replaced(parts: dict[str, Any]) -> Iterator[None]:
    """With functions of the package replaced by others; what was traced before is forgotten."""
    import jax

    jax.clear_caches()
    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(mock.patch(name, part))
        yield
    jax.clear_caches()


def measure(name: str, topology: Any, devices: list[Any], batch: int) -> dict[str, Any]:
    """A row: the figures of 12 layers, or the memory that is needed and not there."""
    import jax

    from vlm_jax.plan import hlo

    parts, changes = STEPS[name]
    scanned = any(key.endswith(".scan") for key in changes)
    row = {"step": name}
    with replaced(parts):
        try:
            depths = (DEPTH,) if scanned else FEW
            found = [read(lower_ours(devices, batch, depth, changes), topology) for depth in depths]
        except jax.errors.JaxRuntimeError as error:
            needed = hlo.memory_needed(error)
            if needed is None:
                raise
            return row | {"needed": needed}
    return row | (found[0] if scanned else extrapolate(*found))


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    rows, floor = results["rows"], results["floor_ms"]
    lines = [
        f"{results['topology']}, {results['pairs']} pairs, floor {floor:.1f} ms",
        "",
        "| step | XLA ms | kernels ms | x floor | MFU at most % | temporaries MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = f"| {WORDS.get(row['step'], row['step'])} |"
        if "needed" in row:
            lines.append(f"{first} does not fit: {row['needed'] / MIB:,.0f} MiB | | | | |")
            continue
        total = row["xla_ms"] + row["kernels_ms"]
        cells = f" {row['xla_ms']:.1f} | {row['kernels_ms']:.1f} | {total / floor:.2f} | {100 * floor / total:.1f} |"
        lines.append(f"{first}{cells} {row['temporaries'] / MIB:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--pairs", type=int, default=128, help="a chip")
    parser.add_argument("--steps", default=";".join(STEPS), help=f"of {'; '.join(STEPS)}")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.steps.split(";")]
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"no step {unknown[0]!r}; there are: {'; '.join(STEPS)}")
    from vlm_jax.plan.compile import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    from vlm_jax.plan import topologies

    topology = topologies.parse(arguments.topology)
    devices = topologies.devices(topology)
    batch = arguments.pairs * len(devices)
    results = {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")},
        "topology": topology.name,
        "pairs": arguments.pairs,
        "floor_ms": floor_ms(topology, len(devices), batch),
        "rows": [],
    }
    for name in names:
        print(f"compiling {name}", flush=True)
        results["rows"].append(measure(name, topology, devices, batch))
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"step_changes_{topology.name.replace(':', '_')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
