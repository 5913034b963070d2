"""What a checkpoint costs a run: how long saving holds the loop up, what fingerprints and guards add to it.

    python -m benchmarks.checkpoints [--config=siglip_b16] [--pairs=16] [--rounds=3] [--folder=DIR] [--output=FILE]

A round is a step without guards, one with all of them, the fingerprints of everything that is saved, a save, and
steps beside it until it is on disk. Times are medians over rounds, of the clock and of this process's threads
(`cpu_s`), which other processes disturb less; what is told are ratios to a step's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import environment, program, startup
from vlm_jax.checkpoint import Store
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.checkpoint.layers import to_layers
from vlm_jax.overrides import override_all
from vlm_jax.plan.subject import experiment_of

GUARDS = [("guards.clip", "health.guards.Clip"), ("guards.spikes", "health.guards.Spikes")]


class Times:
    """Seconds of the clock and of the processor, by what was done."""

    def __init__(self):
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall.setdefault(what, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(what, []).append(time.process_time() - cpu)


def run_of(recipe: str, changes: list[tuple[str, str]], pairs: int) -> tuple[startup.Plan, Callable]:
    config = configs.load(recipe)
    override_all(config, [("batch_size", str(pairs)), ("tokenizer", "bytes"), *changes])
    plan = startup.make_plan(experiment_of(config), jax.devices()[:1])
    return plan, program.jitted_update(plan)


def batch_of(plan: startup.Plan, pairs: int) -> dict[str, jax.Array]:
    """Noise, in the shape of a batch."""
    rng = np.random.default_rng(0)
    spec = plan.experiment.task.batch_spec(pairs)
    return {name: jax.device_put(rng.integers(0, 200, s.shape).astype(s.dtype)) for name, s in spec.items()}


def measure(recipe: str, changes: list[tuple[str, str]], pairs: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians and their ratios. Each program has a state of its own, so the machine holds two."""
    runs = {"plain": run_of(recipe, changes, pairs), "guarded": run_of(recipe, [*changes, *GUARDS], pairs)}
    states = {name: startup.initialise(plan) for name, (plan, _) in runs.items()}
    plan = runs["plain"][0]
    batch, times, beside = batch_of(plan, pairs), Times(), []

    def step(name: str) -> None:
        states[name], metrics = runs[name][1](states[name], batch)
        jax.block_until_ready((states[name], metrics))

    for name in runs:
        step(name)  # compiles
    fingerprint(_saved(plan, states["plain"]))
    with Store(folder, keep=1, stacks=plan.stacks) as store:
        for number in range(1, rounds + 1):
            for name in runs:
                with times.of(name):
                    step(name)
            with times.of("fingerprints"):
                fingerprint(_saved(plan, states["plain"]))
            with times.of("save"):
                store.save(number, startup.to_items(states["plain"]), {"environment": environment.describe()})
            with times.of("write"):
                while store.writing:
                    began = time.perf_counter()
                    step("plain")
                    beside.append(time.perf_counter() - began)
                store.wait()
    wall, cpu = ({k: statistics.median(v) for k, v in kept.items()} for kept in (times.wall, times.cpu))
    items = startup.to_items(states["plain"])
    return {
        "config": recipe,
        "pairs": pairs,
        "rounds": rounds,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(items)),
        "wall_s": wall,
        "cpu_s": cpu,
        "save_over_step": wall["save"] / wall["plain"],
        "save_over_step_cpu": cpu["save"] / cpu["plain"],
        "fingerprints_over_step_cpu": cpu["fingerprints"] / cpu["plain"],
        "guards_over_step_cpu": cpu["guarded"] / cpu["plain"] - 1,
        "step_beside_over_step": statistics.median(beside) / wall["plain"] if beside else None,
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }


def _saved(plan: startup.Plan, state: Any) -> dict[str, Any]:
    return {item: to_layers(live, plan.stacks) for item, live in startup.to_items(state).items()}


def lines(found: dict[str, Any], every: int) -> list[str]:
    """The ratios in words; fingerprints are shared out over the `every` steps from one checkpoint to the next."""
    share = found["fingerprints_over_step_cpu"] / every
    return [
        f"{found['config']}, {found['pairs']} pairs, {found['bytes'] / 1e9:.3g} GB saved: a step takes "
        f"{found['wall_s']['plain']:.3g} s ({found['cpu_s']['plain']:.3g} s of processors)",
        f"a save holds the loop up for {found['save_over_step']:.1%} of a step ({found['save_over_step_cpu']:.1%} of "
        f"its processor time), fingerprints among it {found['fingerprints_over_step_cpu']:.1%}",
        f"guards add {found['guards_over_step_cpu']:.2%} to a step; with fingerprints every {every} steps "
        f"{found['guards_over_step_cpu'] + share:.2%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="siglip_b16")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as --config.KEY=VALUE of a run"
    )
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--every", type=int, default=100, help="steps between checkpoints, for the share of fingerprints"
    )
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    changes = [tuple(change.split("=", 1)) for change in flags.set]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(flags.config, changes, flags.pairs, flags.rounds, flags.folder or Path(folder))
    print("\n".join(lines(found, flags.every)))
    if flags.output:
        flags.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
