"""`python -m vlm_jax.replay WORKDIR/dumps/STEP`: does a step again that a run stopped at, and says what is not finite.

It needs none of the run's devices. The exit code is 0 where the step came out as it did there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from vlm_jax.errors import UserError
from vlm_jax.main import guarded

SHOWN = 12


def replay(folder: Path) -> int:
    """Prints what the step gives and which arrays are not finite. Raises UserError where the folder is no dump."""
    if not (folder / "dump.json").is_file():
        raise UserError(f"{folder} is no dump: it has no dump.json; give WORKDIR/dumps/STEP.")
    import jax
    import jax.numpy as jnp
    import optax

    from vlm_jax import config as configs
    from vlm_jax import dump, program, startup, tree
    from vlm_jax import mesh as meshes
    from vlm_jax.checkpoint import Store
    from vlm_jax.experiment import open_experiment
    from vlm_jax.step import make_gradients

    about = json.loads((folder / "dump.json").read_bytes())
    config = configs.from_json((folder / "config.json").read_text(), str(folder / "config.json"))
    experiment = open_experiment(config, folder.parent.parent / "assets")
    plan = startup.make_plan(experiment, jax.devices())
    with Store(folder, stacks=plan.stacks) as store:
        step, items, meta = store.restore_latest(startup.to_items(plan.placed()))
    state = startup.from_items(plan, step, items, meta.get("guard"))
    size = experiment.batch_size
    whole = dump.read_batch(folder)
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.replay", description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path, metavar="WORKDIR/dumps/STEP")
    flags = parser.parse_args(argv)
    return guarded(lambda: replay(flags.dump))


if __name__ == "__main__":
    sys.exit(main())
