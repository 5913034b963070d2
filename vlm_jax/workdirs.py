"""Workdirs: which one a command means, whether it may be gone on with, and one to throw away."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vlm_jax.errors import UserError

# What decides how soon a batch is there, and not which one it is, or how long is waited: a run may go on with others.
SPEED = r"(data\.(workers|threads|prefetch|cache)|stalls\.\w+): "


def default(spec: str, variant: str | None) -> Path:
    """The workdir that was named as config; else `workdirs/RECIPE[-VARIANT]`."""
    from vlm_jax import config as configs

    name, asked = configs.split_spec(spec)
    if configs.names_workdir(name):
        return Path(name)
    return Path("workdirs") / "-".join(part for part in (Path(name).stem, asked or variant) if part)


def check(workdir: Path, config, allow_change: bool, say: Callable[[str], None]) -> None:
    """A workdir goes on only with the config it was begun with. Raises UserError with the differences."""
    from vlm_jax import config as configs

    path = workdir / "config.json"
    if "://" in str(workdir) or str(workdir).startswith("gs:"):
        raise UserError(
            f"--workdir={workdir} is no local folder; mount the bucket and name the folder it is mounted on."
        )
    if workdir.is_file():
        raise UserError(f"--workdir={workdir} is a file; name a folder.")
    if not path.is_file():
        return
    changes = configs.diff(configs.from_file(path, known=configs.targets(config)), config)
    if not allow_change and (changed := [change for change in changes if not re.match(SPEED, change)]):
        shown = "; ".join(changed[:8]) + ("; ..." if len(changed) > 8 else "")
        raise UserError(
            f"{workdir} belongs to another config ({shown}); take another --workdir, or --allow_config_change."
        )
    for change in changes:
        say(f"config change: {change}")


def check_writable(workdir: Path) -> None:
    """Raises UserError for a workdir that a run cannot write to; makes nothing."""
    there = next(folder for folder in (workdir.absolute(), *workdir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise UserError(f"--workdir={workdir} cannot be written: {there} {why}; name another one.")


@contextlib.contextmanager
def throw_away(workdir: Path, link) -> Iterator[Path]:
    """A folder that all processes see, gone afterwards; for many it lies beside the workdir, which they share."""
    beside = workdir.absolute().with_name(f"{workdir.name}.dry_run")
    if link.index:
        yield beside
        link.gather(None)
        return
    parents = [parent for parent in beside.parents if not parent.exists()]
    if link.count > 1:
        shutil.rmtree(beside, ignore_errors=True)  # what a killed one has left
        beside.mkdir(parents=True)
    try:
        with contextlib.nullcontext(beside) if link.count > 1 else tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            link.gather(None)
    finally:
        if link.count > 1:
            shutil.rmtree(beside, ignore_errors=True)
            for parent in parents:
                parent.rmdir()
