"""Saving and restoring a run: asynchronous, verified, and back to the last good step."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import tree
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.arrays import agree, gist, kind, read_item
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.checkpoint.layers import grouped, to_layers, to_live
from vlm_jax.checkpoint.quiet import silence_log
from vlm_jax.errors import Fault, UserError

Tree = Any

# Errors of the system for which a save fails, wherever TensorStore puts their messages.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE)
# Seconds after which a save that failed is tried again; they double each time.
FIRST_RETRY, LAST_RETRY, NEVER = 30.0, 600.0, math.inf
SHOWN = 20  # kinds of arrays that an error names


class Store:
    """The checkpoints of one workdir.

    Restoring changes nothing on disk. Steps that it found damaged are renamed to `STEP.damaged` by the next save, when
    training has gone on from an older one. A save that fails is told and raises nothing: training goes on, what was
    saved before stays, and `overdue` says when to try again.

    Args:
      workdir: checkpoints are in its `checkpoints/`.
      keep: how many steps stay on disk, the newest; those whose `meta` has `milestone` stay besides.
      stacks: scanned groups of layers and their depth, by name; on disk every layer is an array of its own.
      warn: gets one line for every step that is passed over, and for every save that fails.
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
        self._good: int | None = None
        self._retry, self._retry_at = FIRST_RETRY, NEVER
        self._milestones: set[int] = set()
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
            and of every array its dtype and shape (`arrays`) and its fingerprint (`fingerprints`); the time, `saved`.

        Raises:
          UserError: another run has saved this step here, of other arrays or data.
        """
        self.wait()
        if step == self._last:
            return
        if why := self._no_room(sum(leaf.nbytes for leaf in jax.tree.leaves(dict(items)) if hasattr(leaf, "nbytes"))):
            self._failed(step, why)
            return
        import orbax.checkpoint as ocp

        leaves = {item: layers for item, live in items.items() if (layers := to_layers(live, self._stacks))}
        arrays = {item: {name: kind(leaf) for name, leaf in layers.items()} for item, layers in leaves.items()}
        marks = {item: fingerprint(layers) for item, layers in leaves.items()}
        described = {"format": disk.FORMAT, "step": step, "arrays": _join(arrays), "fingerprints": _join(marks)}
        described["saved"] = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        arguments = {item: ocp.args.PyTreeSave(tree.unflatten(layers)) for item, layers in leaves.items()}
        sealed = disk.seal({"stage": 0, **meta, **described})
        arguments["meta"] = ocp.args.JsonSave(sealed)
        try:
            if not self._clear(step, sealed):
                self._last = step
                self._succeeded("")
                return
            manager = self._open()
            if meta.get("milestone"):
                self._milestones.add(step)
            manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # file systems, and what is between them and us, raise all kinds
            if isinstance(error, UserError) and not isinstance(error, Fault):
                raise
            if jax.process_count() > 1:
                raise  # the others are waiting for this process, and cannot be called back
            self._drop()
            disk.remove_unfinished(self._folder)
            self._failed(step, _why(error))
            return
        self._last = step

    def overdue(self) -> bool:
        """Whether a save has failed and should be tried again now; to be asked between steps, it does not wait.

        Of many processes each would give its own answer; they try again at the next checkpoint.
        """
        if jax.process_count() > 1:
            return False
        if not self.writing:
            self.wait()
        return time.monotonic() >= self._retry_at

    @property
    def last(self) -> int | None:
        """The step that was saved or restored last, or is being saved."""
        return self._last

    @property
    def writing(self) -> bool:
        """Whether a save is still being written."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def wait(self) -> bool:
        """Returns when nothing is being written any more: whether the last save is on disk."""
        if self._manager is not None:
            failed, untidy = self._finish()
            if self._any(bool(failed)):
                self._tell_failed(failed or "another process could not write it")
            else:
                self._succeeded(untidy)
            if self._any(bool(untidy)):
                self._drop()  # on all processes: the manager would raise it again
        return self._retry_at == NEVER

    def close(self) -> None:
        """Waits, and ends the threads behind; a later save starts them again."""
        if self._manager is not None:  # without asking the others, who may be gone
            failed, untidy = self._finish()
            if failed:
                self._tell_failed(failed)
            else:
                self._succeeded(untidy)
        self._drop()

    def restore_latest(self, abstract: Mapping[str, Tree]) -> tuple[int, dict[str, Tree], dict[str, Any]] | None:
        """The last good step as (step, items, meta), or None where nothing was ever saved.

        Args:
          abstract: for every item a tree of `ShapeDtypeStruct` with the shardings wanted; empty ones are left out.

        Raises:
          UserError: names, shapes or dtypes are not those of the checkpoint; or there are steps, but no good one. As a
            `Fault`: the system does not let the last one be read, which is no reason to go back.
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
            self._last = self._good = step
            return step, items, meta
        if self._damaged:
            raise UserError(
                f"{self._folder}: all {len(self._damaged)} checkpoints are damaged; bring a good one back, "
                "or start anew in another workdir."
            )
        return None

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

    def _clear(self, step: int, sealed: Mapping[str, Any]) -> bool:
        """Moves damaged steps, and what else is no checkpoint, out of the way; False where the step is saved already.

        A save that was told as failed may be on disk all the same, as far as another process or Orbax's clearing up is
        to blame.
        """
        away = list(self._damaged)
        if step not in away and (self._folder / str(step)).exists():
            try:
                found = disk.read_meta(self._folder / str(step))
            except Damaged:
                away.append(step)
            else:
                if all(found.get(part) == sealed.get(part) for part in ("fingerprints", "data")):
                    return False
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
        return True

    def _open(self):
        if self._manager is None:
            import orbax.checkpoint as ocp

            silence_log()
            self._milestones = disk.milestones(self._folder)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=Kept(self._keep, self._milestones, disk.foreign(self._folder)),
                cleanup_tmp_directories=True,  # what a killed save has left
                lightweight_initialize=True,
            )
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager

    def _finish(self) -> tuple[str, str]:
        """Waits for the save that is under way; why it failed, if it did, and else what came after."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            return ("", _why(error)) if self._is_whole(self._last) else (_why(error), "")
        return "", ""

    def _is_whole(self, step: int) -> bool:
        """Whether a step is on disk: Orbax gives it its name when all of it is, and then deletes older ones."""
        try:
            disk.read_meta(self._folder / str(step))
        except (Damaged, UserError):
            return False
        return True

    def _succeeded(self, untidy: str) -> None:
        """What was saved last is on disk, as far as every process knows; `untidy` is why more than that is."""
        if untidy:
            self._warn(f"checkpoint {self._last} is saved; older ones could not be deleted ({untidy})")
        if self._good != self._last:
            self._good = self._last
            self._retry, self._retry_at = FIRST_RETRY, NEVER

    def _drop(self) -> None:
        """Ends Orbax's manager."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # it raises again what was told
                manager.close()

    def _tell_failed(self, why: str) -> None:
        """A save has failed behind; what it left half written goes, as it takes the room that is missing."""
        step, self._last = self._last, self._good
        self._drop()
        if jax.process_index() == 0:
            disk.remove_unfinished(self._folder)
        self._failed(step, why)

    def _failed(self, step: int, why: str) -> None:
        last = "nothing is saved yet" if self._good is None else f"the last checkpoint is {self._good}"
        self._warn(f"checkpoint {step} could not be saved ({why}); training goes on, {last}")
        self._retry_at = time.monotonic() + self._retry
        self._retry = min(2 * self._retry, LAST_RETRY)

    def _no_room(self, size: int) -> str | None:
        """Why `size` bytes cannot be saved now, if so, as process 0 sees it."""
        why = disk.no_room(self._folder, size) if jax.process_index() == 0 else None
        return (why or "process 0 cannot write it") if self._any(why is not None) else None

    def _any(self, flag: bool) -> bool:
        """Whether it is true of any process."""
        if jax.process_count() == 1:
            return flag
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


@dataclasses.dataclass
class Kept:
    """Orbax's policy of what stays: the newest, milestones, and what is not ours."""

    newest: int
    milestones: set[int]
    foreign: set[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted({info.step for info in checkpoints} - self.foreign)[-self.newest :]
        return [info.step in {*newest, *self.milestones, *self.foreign} for info in checkpoints]


def _why(error: Exception) -> str:
    """What the system said, wherever TensorStore has put it; else the start of the error."""
    return disk.said_by_system(error, UNWRITABLE) or gist(error)


def _join(items: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{item}/{name}": value for item, values in items.items() for name, value in values.items()}


def _check_same(folder: Path, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises UserError where a checkpoint holds other arrays than the run has; layers are told as one."""
    wrong = {
        name: f"is {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    }
    if told := [f"{name} {what}" for name, what in grouped(wrong)]:
        more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise UserError(f"{folder} is not of this model and optimizer: {'; '.join(told[:SHOWN])}{more}.")
