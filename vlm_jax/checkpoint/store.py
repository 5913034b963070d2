"""Saving and restoring a run: asynchronous, verified, and back to the last good step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vlm_jax import tree
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.arrays import agree, kind, read_item
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.checkpoint.layers import to_layers, to_live
from vlm_jax.checkpoint.quiet import silence_log
from vlm_jax.errors import UserError

Tree = Any


class Store:
    """The checkpoints of one workdir.

    Restoring changes nothing on disk. Steps that it found damaged are renamed to `STEP.damaged` by the next save, when
    training has gone on from an older one.

    Args:
      workdir: checkpoints are in its `checkpoints/`.
      keep: how many steps stay on disk, the newest.
      stacks: scanned groups of layers and their depth, by name; on disk every layer is an array of its own.
      warn: gets one line for every step that is passed over.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep: int = 3,
        stacks: Mapping[str, int] | None = None,
        warn: Callable[[str], None] = disk.to_stderr,
    ):
        self._folder = disk.root(workdir)
        self._keep, self._stacks, self._warn = keep, dict(stacks or {}), warn
        self._damaged: list[int] = []
        self._last: int | None = None
        self._manager = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(self, step: int, items: Mapping[str, Tree], meta: Mapping[str, Any]) -> None:
        """Copies `items` off the devices and returns; writing goes on behind, and the arrays may be donated.

        A save that is still being written is waited for first. The step that this store saved or restored last is not
        saved again.

        Args:
          step: names the checkpoint.
          items: live trees `params`, `state`, `opt`, `ema`; empty ones are left out.
          meta: JSON: `config`, `data`, `preprocessing`, ...; added are `format`, `step`, `stage` (0 unless given),
            and of every array its dtype and shape (`arrays`) and its fingerprint (`fingerprints`).

        Raises:
          UserError: another run has saved this step here.
        """
        if step == self._last:
            return
        import orbax.checkpoint as ocp

        leaves = {item: layers for item, live in items.items() if (layers := to_layers(live, self._stacks))}
        arrays = {item: {name: kind(leaf) for name, leaf in layers.items()} for item, layers in leaves.items()}
        marks = {item: fingerprint(layers) for item, layers in leaves.items()}
        described = {"format": disk.FORMAT, "step": step, "arrays": _join(arrays), "fingerprints": _join(marks)}
        arguments = {item: ocp.args.PyTreeSave(tree.unflatten(layers)) for item, layers in leaves.items()}
        arguments["meta"] = ocp.args.JsonSave(disk.seal({"stage": 0, **meta, **described}))
        self._clear(step)
        self._open().save(step, args=ocp.args.Composite(**arguments), force=True)
        self._last = step

    def restore_latest(self, abstract: Mapping[str, Tree]) -> tuple[int, dict[str, Tree], dict[str, Any]] | None:
        """The last good step as (step, items, meta), or None where nothing was ever saved.

        Args:
          abstract: for every item a tree of `ShapeDtypeStruct` with the shardings wanted; empty ones are left out.

        Raises:
          UserError: names, shapes or dtypes are not those of the checkpoint; or there are steps, but no good one.
        """
        self.wait()
        self._damaged = []
        abstract = {item: live for item, live in abstract.items() if jax.tree.leaves(live)}
        for step in disk.steps(self._folder):
            try:
                items, meta = self._restore(step, abstract)
            except Damaged as damage:
                self._warn(f"checkpoint {step} is damaged, going back to the one before: {damage}")
                self._damaged.append(step)
                continue
            self._last = step
            return step, items, meta
        if self._damaged:
            raise UserError(
                f"{self._folder}: all {len(self._damaged)} checkpoints are damaged; bring a good one back, "
                "or start anew in another workdir."
            )
        return None

    def wait(self) -> None:
        """Returns when everything is on disk, or raises what went wrong in the background."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads behind; a later save starts them again."""
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.wait_until_finished()
            finally:
                manager.close()

    def _restore(self, step: int, abstract: Mapping[str, Tree]) -> tuple[dict[str, Tree], dict[str, Any]]:
        folder = self._folder / str(step)
        meta = agree(lambda: disk.read_meta(folder))
        targets = {item: to_layers(live, self._stacks) for item, live in abstract.items()}
        wanted = {item: {name: kind(leaf) for name, leaf in layers.items()} for item, layers in targets.items()}
        _check_same(folder, meta["arrays"], _join(wanted))
        items = {}
        for item, live in abstract.items():
            marks = disk.of_item(item, meta["fingerprints"])
            items[item] = to_live(live, read_item(folder / item, targets[item], marks), self._stacks)
        return items, meta

    def _clear(self, step: int) -> None:
        """Moves damaged steps, and what else is no checkpoint, out of the way."""
        away = list(self._damaged)
        if step not in away and (self._folder / str(step)).exists():
            try:
                disk.read_meta(self._folder / str(step))
            except Damaged:
                away.append(step)
            else:
                raise UserError(f"{self._folder / str(step)} is a checkpoint of another run; give another workdir.")
        if jax.process_index() == 0:
            for old in away:
                disk.set_aside(self._folder, old)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("vlm_jax.checkpoint.clear")
        if away and self._manager is not None:
            self._manager.reload()
        self._damaged = []

    def _open(self):
        if self._manager is None:
            import orbax.checkpoint as ocp

            silence_log()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
                cleanup_tmp_directories=True,  # what a killed save has left
                lightweight_initialize=True,
            )
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager


def _join(items: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{item}/{name}": value for item, values in items.items() for name, value in values.items()}


def _check_same(folder: Path, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises UserError where a checkpoint holds other arrays than the run has."""
    wrong = [
        f"{name} is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{folder} is not of this model and optimizer: {'; '.join(wrong[:4])}{more}.")
