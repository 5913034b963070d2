"""`python -m vlm_jax.replay WORKDIR/dumps/STEP`: does a step again that a run stopped at, and says what is not finite.

It runs on whatever devices there are, if they divide the batch; where the run's mesh does not fit them, parameters are
split over all. The data and the tokenizer that the config names have to be there, as the model is built to fit them.
The exit code is 0 where the step came out as it did there.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError
from vlm_jax.main import guarded

SHOWN = 12


def replay(folder: Path) -> int:
    """Prints what the step gives and which arrays are not finite.

    Raises UserError where the folder is no dump, or not a whole one.
    """
    folder = Path(os.path.abspath(folder))
    if not (folder / "dump.json").is_file():
        raise UserError(f"{folder} is no dump: it has no dump.json; give WORKDIR/dumps/STEP.")
    import jax
    import jax.numpy as jnp
    import optax

    from vlm_jax import config as configs
    from vlm_jax import dump, program, tree
    from vlm_jax import mesh as meshes
    from vlm_jax.experiment import open_experiment
    from vlm_jax.step import make_gradients

    about = dump.read_about(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no whole dump: it has no config.json.")
    config = configs.from_file(folder / "config.json")
    experiment = open_experiment(config, folder.parent.parent / "assets")
    size = experiment.batch_size
    whole = dump.read_batch(folder, size)
    plan = _plan(experiment)
    state = _state(folder, plan)
    batch = {name: whole[name] for name in experiment.task.batch_spec(size)}
    batch = meshes.put(batch, meshes.local_rows(plan.mesh, size), size, plan.mesh)

    def gradients(state, batch):
        found = make_gradients(experiment.task, plan.mesh, program.options(experiment))(state, batch)
        bad = jax.tree.map(lambda x: (~jnp.isfinite(x)).sum(), found.grads)
        return {"loss": found.loss, "grad_norm": optax.global_norm(found.grads)}, bad

    metrics, bad = jax.device_get(jax.jit(gradients)(state, batch))
    ids = about["example_ids"]
    print(f"step {about['step']}, {len(ids)} examples from {ids[0]} to {ids[-1]}, on {plan.mesh.size} devices")
    same = True
    for name in ("loss", "grad_norm"):
        value, was = float(metrics[name]), float(about["metrics"][name])
        alike = math.isclose(value, was, rel_tol=1e-3) or (not math.isfinite(value) and not math.isfinite(was))
        same &= alike
        print(f"{name} {value:g}, in the run {was:g}{'' if alike else ': not the same'}")
    params = {name: int((~jnp.isfinite(x)).sum()) for name, x in tree.flatten(state.params).items()}
    for what, counts in (("parameters", params), ("gradients", tree.flatten(bad))):
        wrong = {name: int(count) for name, count in counts.items() if count}
        print(f"{what} that are not finite: {len(wrong)} of {len(counts)} arrays")
        for name, count in list(wrong.items())[:SHOWN]:
            print(f"  {name}: {count} values")
        if len(wrong) > SHOWN:
            print(f"  and {len(wrong) - SHOWN} more")
    return 0 if same else 1


def _plan(experiment: Any) -> Any:
    """As the run's, or, where there are too few or too many devices for that, split over those that there are."""
    import jax

    from vlm_jax import startup

    try:
        return startup.make_plan(experiment, jax.devices())
    except UserError:
        mesh = dataclasses.replace(experiment.mesh, data=1, fsdp=-1, tensor=1)
        return startup.make_plan(dataclasses.replace(experiment, mesh=mesh), jax.devices())


def _state(folder: Path, plan: Any) -> Any:
    """That before the step."""
    from vlm_jax import startup
    from vlm_jax.checkpoint import Store

    with Store(folder, stacks=plan.stacks) as store:
        found = store.restore_latest(startup.to_items(plan.placed()))
    if found is None:
        raise UserError(f"{folder} is no whole dump: it has no checkpoint.")
    step, items, meta = found
    return startup.from_items(plan, step, items, meta.get("guard"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.replay", description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path, metavar="WORKDIR/dumps/STEP")
    flags = parser.parse_args(argv)
    return guarded(lambda: replay(flags.dump))


if __name__ == "__main__":
    sys.exit(main())
