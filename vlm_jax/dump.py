"""A step that cannot go on, as files: `python -m vlm_jax.replay WORKDIR/dumps/STEP` does it again.

`config.json`; `checkpoints/`: the state before the step; `batch-PROCESS.npz`: the rows of each process, as `rows` says
which; `dump.json`: step, metrics, ids of the examples.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import startup
from vlm_jax.checkpoint import Store
from vlm_jax.checkpoint.arrays import gist
from vlm_jax.errors import UserError
from vlm_jax.health import guards
from vlm_jax.report import replace_file
from vlm_jax.state import TrainState

if TYPE_CHECKING:
    from vlm_jax.run import Run


def example_ids(batch: Mapping[str, np.ndarray]) -> list[int]:
    """The global indices of the examples of a batch: `example_id` uint32 [..., 2] are their high and low halves."""
    halves = np.asarray(batch["example_id"], np.uint64).reshape(-1, 2)
    return np.unique(halves[:, 0] << np.uint64(32) | halves[:, 1]).tolist()


def give_up(run: Run, state: TrainState, step: int, metrics: Mapping[str, jax.Array], why: str = "") -> NoReturn:
    """Leaves a dump of the step that has just been done, and dropped, and ends the run by a UserError.

    Args:
      state: after the step; but for its number it is the state before. metrics: of the step.
      why: by default, that it was not finite.
    """
    folder = run.workdir / "dumps" / str(step)
    ids = sorted({one for of_process in run.link.gather(example_ids(run.batch)) for one in of_process})
    why = why or f"not finite, as {run.verdicts.not_finite} in a row"
    try:
        write(folder, run, state, step, metrics, ids)
        dumped = f"`python -m vlm_jax.replay {folder}` does it again"
    except Exception as error:  # whatever it is, it must not hide why the run ends; it ends the other processes too
        dumped = f"{folder} could not be written ({getattr(error, 'strerror', None) or gist(error)})"
    raise UserError(
        f"step {step}: loss {float(metrics['loss']):g}, gradient norm {float(metrics['grad_norm']):g}: {why}; "
        f"examples {ids[0]} to {ids[-1]} ({len(ids)}); {dumped}."
    )


def write(
    folder: Path, run: Run, state: TrainState, step: int, metrics: Mapping[str, jax.Array], ids: Sequence[int]
) -> None:
    """Writes the dump, in place of one that an earlier try left. Raises OSError, and what Orbax does."""
    link = run.link
    if link.index == 0:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        replace_file(folder / "config.json", configs.to_json(run.config).encode())
    link.gather(None)
    np.savez(folder / f"batch-{link.index}.npz", rows=run.rows, **run.batch)
    meta = {"config": configs.plain(run.config), "data": {}, "guard": guards.to_json(state.guard)}
    with Store(folder, keep=1, stacks=run.plan.stacks, warn=run.warn) as store:
        store.save(step - 1, startup.to_items(state), meta)
        if not store.wait():
            raise OSError("the state before the step is not saved")
    if link.index == 0:  # last: a dump that has it is whole
        said = {name: repr(float(value)) for name, value in jax.device_get(dict(metrics)).items()}
        content = {"step": step, "processes": link.count, "metrics": said, "example_ids": ids}
        replace_file(folder / "dump.json", json.dumps(content, indent=1).encode() + b"\n")


def read_about(folder: Path) -> dict[str, Any]:
    """`dump.json`: step, metrics of it, ids of its examples. Raises UserError where it is damaged."""
    try:
        about = json.loads((folder / "dump.json").read_bytes())
        metrics = {name: float(value) for name, value in about["metrics"].items()}
        ids = [int(one) for one in about["example_ids"]]
        found = {"step": int(about["step"]), "metrics": metrics, "example_ids": ids}
        metrics["loss"], metrics["grad_norm"], ids[0]
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{folder / 'dump.json'} is damaged ({type(error).__name__}: {error}).") from error
    return found


def read_batch(folder: Path, size: int) -> dict[str, np.ndarray]:
    """The whole batch of a dump, in the order of its `size` rows. Raises UserError where it is not there."""
    paths = sorted(folder.glob("batch-*.npz"))
    try:
        parts = [dict(np.load(path)) for path in paths]
        held = np.concatenate([part["rows"] for part in parts] or [np.zeros(0, int)])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder}: its batch cannot be read ({type(error).__name__}: {error}).") from error
    rows, first = np.unique(held, return_index=True)
    if rows.tolist() != list(range(size)):
        raise UserError(f"{folder}: {len(paths)} files batch-*.npz have {len(rows)} of the {size} rows of the batch.")
    names = [name for name in parts[0] if name != "rows"]
    return {name: np.concatenate([part[name] for part in parts])[first] for name in names}
