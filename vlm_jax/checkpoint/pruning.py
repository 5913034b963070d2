"""Deleting steps, and never the last good one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.checkpoint.survey import verify
from vlm_jax.errors import UserError


def prune(workdir: Path, keep: int, *, damaged: bool, dry_run: bool, say: Callable[[str], None]) -> int:
    """Deletes all steps but milestones and the last `keep` good ones; these are read and verified first.

    A damaged step stays, as something in it may be saved, unless `damaged` says that it may go.

    Returns: the exit code, 1 where no step is good (then nothing is deleted).
    """
    if disk.is_step(workdir):
        raise UserError(f"{workdir} is one checkpoint; name the workdir.")
    good, gone = 0, []
    for folder in disk.chosen(workdir):
        try:
            meta = verify(folder) if good < keep else disk.read_meta(folder)
        except Damaged as damage:
            if disk.vanishes(folder):  # a live run deletes it
                continue
            say(f"{folder.name}: damaged: {damage}")
            gone += [folder] if damaged else []
            continue
        if good < keep:
            good += 1
            say(f"{folder.name}: good, stays")
        elif meta.get("milestone"):
            say(f"{folder.name}: a milestone, stays")
        else:
            gone.append(folder)
    if not good:
        say("no step is good; nothing is deleted")
        return 1
    if damaged:
        gone += [disk.root(workdir) / name for name in disk.others(disk.root(workdir))[0]]
    for folder in gone:
        if not dry_run:
            # Half deleted it must not look like a step; a run that saves here clears such names away.
            half = folder.with_name(f"{folder.name}{disk.UNFINISHED}-deleted")
            with contextlib.suppress(FileNotFoundError):  # a live run was faster
                shutil.rmtree(folder.rename(half))
        say(f"{folder.name}: {'would be deleted' if dry_run else 'deleted'}")
    return 0
