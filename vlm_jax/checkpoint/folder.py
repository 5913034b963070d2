"""What lies in `WORKDIR/checkpoints`: steps, their `meta`, and which of them are to be read. Knows no array.

WORKDIR/checkpoints/STEP/{params,state,opt,ema}/   arrays, by Orbax
WORKDIR/checkpoints/STEP/meta/metadata             JSON
WORKDIR/checkpoints/STEP.damaged/                  a step that could not be read, out of the way of later saves
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError

FORMAT = 1


class Damaged(Exception):
    """A step on disk that cannot be read as it was written; the message is one line."""


def root(workdir: str | Path) -> Path:
    """Where the steps of a workdir lie."""
    return Path(workdir).absolute() / "checkpoints"


def steps(folder: Path) -> list[int]:
    """Steps in a `checkpoints` folder, newest first, good or not."""
    if not folder.is_dir():
        return []
    return sorted(
        (int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()), reverse=True
    )


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


def read_meta(step_folder: str | Path) -> dict[str, Any]:
    """The `meta` of a step.

    Raises:
      Damaged: it is missing, no JSON, or not what was written.
      UserError: it was written by a later version.
    """
    try:
        meta = json.loads((Path(step_folder) / "meta" / "metadata").read_text())
    except OSError as error:
        raise Damaged("it has no meta") from error
    except ValueError as error:
        raise Damaged("its meta is not JSON") from error
    if not isinstance(meta, dict) or meta.pop("checksum", None) != _checksum(meta):
        raise Damaged("its meta is not what was written")
    if meta["format"] > FORMAT:
        raise UserError(f"{step_folder} has format {meta['format']}, newer than {FORMAT}; install a newer vlm_jax.")
    return meta


def of_item(item: str, by_name: Mapping[str, str]) -> dict[str, str]:
    """What `meta` says of the arrays of one item, by their names in it."""
    prefix = f"{item}/"
    return {name.removeprefix(prefix): value for name, value in by_name.items() if name.startswith(prefix)}


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def set_aside(folder: Path, step: int) -> None:
    """Renames a step to `STEP.damaged`: it keeps what it has, and does not stand in the way of a save at that step."""
    aside, count = folder / f"{step}.damaged", 1
    while aside.exists():
        count += 1
        aside = folder / f"{step}.damaged.{count}"
    (folder / str(step)).rename(aside)


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
