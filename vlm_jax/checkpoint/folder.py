"""What lies in `WORKDIR/checkpoints`: steps, their `meta`, and which of them are to be read. Knows no array.

WORKDIR/checkpoints/STEP/{params,state,opt,ema}/   arrays, by Orbax
WORKDIR/checkpoints/STEP/meta/metadata             JSON
WORKDIR/checkpoints/STEP.damaged/                  a step that could not be read, out of the way of later saves
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vlm_jax.errors import Fault, UserError

T = TypeVar("T")

FORMAT = 1
PARTS = ("meta", "params", "state", "opt", "ema", "_CHECKPOINT_METADATA")  # of a step; some may be missing
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
# Errors of the system that tell of files as they are; any other (a server that is away, too many open files) does not.
OF_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
# Those that libraries put into errors of their own.
HINDRANCES = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)
MOMENT = 0.5  # seconds in which files of a step go that is being deleted
PAUSES = (1.0, 4.0)  # seconds before what could not be read is tried again


class Damaged(Exception):
    """A step on disk that cannot be read as it was written; the message is one line."""


def root(workdir: str | Path) -> Path:
    """Where the steps of a workdir lie."""
    return Path(workdir).absolute() / "checkpoints"


def steps(folder: Path) -> list[int]:
    """Steps in a `checkpoints` folder, newest first, good or not; folders that hold nothing of ours are none."""
    return sorted((step for step, ours in _numbered(folder).items() if ours), reverse=True)


def foreign(folder: Path) -> set[int]:
    """Numbers of folders that are named as steps are, and are none."""
    return {step for step, ours in _numbered(folder).items() if not ours}


def _numbered(folder: Path) -> dict[int, bool]:
    """Folders with a number as name, and whether something in them is a checkpoint's."""
    if not folder.is_dir():
        return {}
    found = (path for path in folder.iterdir() if _is_number(path.name) and path.is_dir())
    return {int(path.name): any((path / part).exists() for part in PARTS) for path in found}


def _is_number(name: str) -> bool:
    """Whether a step's folder would be named so: no zeros before it, no digits of other scripts."""
    return re.fullmatch(r"0|[1-9][0-9]*", name) is not None


def is_step(path: Path) -> bool:
    """Whether it is the folder of one step, and no workdir."""
    path = path.absolute()
    return path.parent.name == "checkpoints" and _is_number(path.name) and path.is_dir()


def chosen(path: Path) -> list[Path]:
    """The folders of steps that a path of the command line means, newest first.

    Raises:
      UserError: it is neither a workdir with checkpoints nor the folder of a step.
    """
    path = path.absolute()  # Orbax takes no other
    if is_step(path):
        return [path]
    found = [root(path) / str(step) for step in steps(root(path))]
    if not found:
        raise UserError(f"{path} is no workdir with checkpoints, and no checkpoint.")
    return found


def others(folder: Path) -> tuple[list[str], list[str]]:
    """(steps that were set aside, what is no checkpoint) in a `checkpoints` folder, by name."""
    ours = {str(step) for step in steps(folder)}
    names = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    aside = [name for name in names if re.fullmatch(r"\d+\.damaged(\.\d+)?", name)]
    return aside, [name for name in names if name not in aside]


def size(folder: Path) -> int:
    """Bytes of all files below it; files may go while it counts."""
    total = 0
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):
            total += os.stat(path).st_size
    return total


def _files(folder: Path) -> list[str]:
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def vanishes(folder: Path) -> bool:
    """Whether a step that looks damaged is one that a live run deletes: it is gone, or will be when no file goes."""
    count = len(_files(folder))
    while folder.is_dir():
        time.sleep(MOMENT)
        before, count = count, len(_files(folder))
        if folder.is_dir() and count >= before:
            return False
    return True


def latest_step(workdir: str | Path) -> int | None:
    """The newest step whose `meta` can be read; its arrays are not looked at."""
    for step in steps(root(workdir)):
        try:
            read_meta(root(workdir) / str(step))
        except Damaged:
            continue
        return step
    return None


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as JSON gives it back, with a checksum of itself."""
    plain = json.loads(json.dumps(meta))
    return {**plain, "checksum": _checksum(plain)}


def patiently(folder: Path, read: Callable[[], T]) -> T:
    """`read()` of files of a step's folder, tried again where the system hinders it.

    Raises:
      Fault: it still does: the step is not to be passed over, as it may be whole.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except Exception as error:
            if not (why := hindrance(error)):
                raise
            if pause is None:
                raise Fault(
                    f"{folder} cannot be read ({why}), and may be whole: start again when it can; or rename its step, "
                    "to go on from the one before."
                ) from error
            time.sleep(pause)
    raise AssertionError


def hindrance(error: Exception) -> str:
    """What the system said where it could not read at all, also inside of another error; else nothing."""
    if isinstance(error, OSError) and error.errno not in (None, *OF_CONTENT):
        return error.strerror or str(error)
    return said_by_system(error, HINDRANCES)


def said_by_system(error: Exception, numbers: Iterable[int]) -> str:
    """Which of the system's messages an error of a library holds; else nothing."""
    return next((text for text in map(os.strerror, numbers) if text in str(error)), "")


def read_meta(step_folder: str | Path) -> dict[str, Any]:
    """The `meta` of a step.

    Raises:
      Damaged: it is missing, no JSON, not what was written, or of another step than the folder's name says.
      UserError: it was written by a later version; as a `Fault`: the system does not let it be read.
    """
    path = Path(step_folder) / "meta" / "metadata"
    try:
        meta = json.loads(patiently(Path(step_folder), path.read_bytes))
    except OSError as error:
        raise Damaged("it has no meta") from error
    except (ValueError, RecursionError) as error:
        raise Damaged("its meta is not JSON") from error
    if not isinstance(meta, dict) or meta.pop("checksum", None) != _checksum(meta):
        raise Damaged("its meta is not what was written")
    if not isinstance(meta.get("format"), int):
        raise Damaged("its meta is not of this program")
    if meta["format"] > FORMAT:
        raise UserError(f"{step_folder} has format {meta['format']}, newer than {FORMAT}; install a newer vlm_jax.")
    names = [meta.get("arrays"), meta.get("fingerprints")]
    if not all(isinstance(part, dict) and all(isinstance(x, str) for x in part.values()) for part in names):
        raise Damaged("its meta names no arrays")
    name = Path(step_folder).name
    if _is_number(name) and meta.get("step") != int(name):
        raise Damaged(f"it is of step {meta.get('step')}")
    return meta


def read_good_meta(step_folder: Path) -> dict[str, Any]:
    """`read_meta` for a program's user: raises UserError where it is damaged."""
    try:
        return read_meta(step_folder)
    except Damaged as damage:
        raise UserError(f"{step_folder} is damaged: {damage}.") from damage


def of_item(item: str, by_name: Mapping[str, str]) -> dict[str, str]:
    """What `meta` says of the arrays of one item, by their names in it."""
    prefix = f"{item}/"
    return {name.removeprefix(prefix): value for name, value in by_name.items() if name.startswith(prefix)}


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def milestones(folder: Path) -> set[int]:
    """Steps of a `checkpoints` folder that are to stay for ever."""
    found = set()
    for step in steps(folder):
        with contextlib.suppress(Damaged):
            found |= {step} if read_meta(folder / str(step)).get("milestone") else set()
    return found


def no_room(folder: Path, size: int) -> str | None:
    """Why `size` bytes cannot be written to a folder, in a few words; None where nothing speaks against it."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return error.strerror or str(error)
    if usage.total and usage.free < size:  # mounted buckets may know no size
        return f"{size / 1e9:.3g} GB are needed and {usage.free / 1e9:.3g} GB free"
    return None


def remove_unfinished(folder: Path) -> None:
    """Deletes what failed saves have left: Orbax writes a step beside its place, and renames it when it is whole."""
    for path in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, step: int) -> None:
    """Renames a step to `STEP.damaged`: it keeps what it has, and does not stand in the way of a save at that step."""
    aside, count = folder / f"{step}.damaged", 1
    while aside.exists():
        count += 1
        aside = folder / f"{step}.damaged.{count}"
    (folder / str(step)).rename(aside)


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
