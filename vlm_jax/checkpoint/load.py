"""Parameters alone, without model, optimizer or devices' layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_jax import tree
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.arrays import read_item
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.errors import UserError


def load_params(
    path: str | Path,
    weights: str = "params",
    step: int | None = None,
    *,
    warn: Callable[[str], None] = disk.to_stderr,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters as nested per-layer dicts of numpy arrays, `meta`), verified.

    Args:
      path: a workdir, or the folder of one step.
      weights: `params`, or `ema` for their moving average.
      step: of a workdir; the last good one unless given.
      warn: gets one line for every damaged step that is passed over.

    Raises:
      UserError: there is no checkpoint, it lacks these weights, or none is good.
    """
    path = Path(path).absolute()
    folders = _candidates(path, step)
    for folder in folders:
        try:
            meta = disk.read_meta(folder)
            marks = disk.of_item(weights, meta["fingerprints"])
            if not marks:
                held = sorted({name.split("/")[0] for name in meta["fingerprints"]} & {"params", "ema"})
                raise UserError(f"{folder} has no weights {weights!r}; it has {' and '.join(held)}.")
            return tree.unflatten(read_item(folder / weights, dict.fromkeys(marks), marks)), meta
        except Damaged as damage:
            if len(folders) == 1:
                raise UserError(f"{folder} is damaged: {damage}.") from damage
            warn(f"checkpoint {folder.name} is damaged, going back to the one before: {damage}")
    raise UserError(f"{path}: all {len(folders)} checkpoints are damaged; bring a good one back.")


def _candidates(path: Path, step: int | None) -> list[Path]:
    """Folders of steps to try, in order."""
    if (path / "meta").is_dir():
        return [path]
    folder = disk.root(path)
    found = disk.steps(folder)
    if not found:
        raise UserError(f"{path} is no workdir with checkpoints, and no checkpoint.")
    if step is not None and step not in found:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, found))}.")
    return [folder / str(s) for s in (found if step is None else [step])]
