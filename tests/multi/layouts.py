"""One program for one process or several: rows, twenty steps and a checkpoint on meshes laid over them in many ways.

`python -m tests.multi.layouts OUT [LAYOUT ...] --coordinator=...` writes what each process saw to OUT;
`python -m tests.multi.layouts OUT WORKDIR --coordinator=...` restores from WORKDIR and takes a step.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.helpers import Stepper, small_experiment
from vlm_jax import main, processes, startup, tree
from vlm_jax import mesh as meshes
from vlm_jax.checkpoint import Store
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.mesh import Layout

STEPS = 20
TENSOR = ((".*/fc1/kernel", "-,tensor"), (".*/fc2/kernel", "tensor,-"))
# Name: the mesh, and whether its devices go round the processes, so that neighbours belong to different ones.
LAYOUTS = {
    "contiguous": (Layout(data=1, fsdp=-1, min_size=1), False),
    "tensor": (Layout(data=-1, tensor=2, rules=TENSOR), True),
    "scattered": (Layout(data=-1, fsdp=2, min_size=1), True),
}


def ordered(devices: list[Any], around: bool, count: int) -> list[Any]:
    """The devices process by process, or one of each process in turn; `count` processes share them."""
    each = len(devices) // count
    return [devices[p * each + k] for k in range(each) for p in range(count)] if around else devices


def measure(folder: Path, name: str, devices: list[Any], count: int) -> dict[str, np.ndarray]:
    """What a process reads, parameters after one step, and losses; `count` is how many processes share `devices`."""
    layout, around = LAYOUTS[name]
    experiment = dataclasses.replace(small(folder), mesh=layout)
    stepper = Stepper.make(experiment, ordered(devices, around, count))
    state, losses, out = startup.initialise(stepper.plan), [], {"rows": stepper.rows}
    for step in range(STEPS):
        local = next(stepper.batches)
        out |= {f"batch/{key}": value for key, value in local.items()} if step == STEPS - 1 else {}
        state, metrics = stepper.update(state, stepper.put(local))
        losses.append(float(metrics["loss"]))
        if step == 0:
            out |= {f"params/{key}": value for key, value in whole(state.params, stepper.plan.mesh).items()}
            out["words"] = np.array([f"{k} {v}" for k, v in fingerprint(state.params).items()])
            if name == "scattered" and jax.process_count() > 1:
                with Store(folder / "run", stacks=stepper.plan.stacks) as store:
                    store.save(1, startup.to_items(state), {})
    stepper.batches.close()
    return {**out, "losses": np.array(losses)}


def restored(folder: Path, run: Path, devices: list[Any]) -> dict[str, np.ndarray]:
    """The fingerprints of a checkpoint as restored here, and the parameters one step later."""
    experiment = dataclasses.replace(small(folder), mesh=LAYOUTS["scattered"][0])
    stepper = Stepper.make(experiment, devices)
    with Store(run, stacks=stepper.plan.stacks) as store:
        step, items, _ = store.restore_latest(startup.to_items(stepper.plan.placed()))
    state = startup.from_items(stepper.plan, step, items)
    words = np.array([f"{k} {v}" for k, v in fingerprint(state.params).items()])
    next(stepper.batches)
    state, _ = stepper.update(state, stepper.batch())
    stepper.batches.close()
    params = {f"params/{key}": value for key, value in whole(state.params, stepper.plan.mesh).items()}
    return {"words": words, "step": np.array(step), **params}


def small(folder: Path):
    return small_experiment(folder, total_examples="320", optimizer__eps="1e-4")


def whole(params: Any, mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    return {name: meshes.gather(x, mesh) for name, x in tree.flatten(params).items()}


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    words = [word for word in rest if not word.startswith("--")]
    flags = main.parser().parse_args([word for word in rest if word.startswith("--")])
    link = processes.join(processes.asked_for(flags), [], flags.process_timeout)
    with link.together():
        folder = Path(folder)
        link.in_turn(lambda: small(folder))  # the tokenizer
        for word in words:
            if word in LAYOUTS:
                found = measure(folder, word, jax.devices(), link.count)
            else:
                found = restored(folder, Path(word), jax.devices())
            np.savez(folder / f"{Path(word).name}-{link.index}.npz", **found)
