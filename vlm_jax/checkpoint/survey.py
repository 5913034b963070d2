"""What there is in a workdir's checkpoints, by what they say of themselves, and whether it is true."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.arrays import read_item
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.redact import hidden

HEAD = ("step", "saved", "size", "arrays", "vlm_jax", "commit", "jax", "devices", "")
UNKNOWN = "-"


def overview(workdir: Path) -> list[str]:
    """A line for each step, newest first; what was set aside, and what is no checkpoint of ours."""
    rows = [row for folder in disk.chosen(workdir) if (row := _row(folder))]
    lines = _table((HEAD, *rows))
    aside, foreign = disk.others(disk.root(workdir))
    lines += [f"set aside as damaged: {name}" for name in aside]
    lines += [f"no checkpoint: {name}" for name in foreign]
    return lines


def details(step_folder: Path) -> list[str]:
    """Everything that one step says of itself but its arrays, `key = value`. Raises UserError where it is damaged."""
    meta = disk.read_good_meta(step_folder)
    shown = {k: v for k, v in meta.items() if k not in ("arrays", "fingerprints", "config", "preprocessing")}
    return [hidden(f"{name} = {value!r}") for name, value in _flat(shown)]


def verify(step_folder: Path) -> dict[str, Any]:
    """The `meta` of a step whose every array is what was written. Raises Damaged."""
    meta = disk.read_meta(step_folder)
    for item in sorted({name.split("/")[0] for name in meta["fingerprints"]}):
        marks = disk.of_item(item, meta["fingerprints"])
        read_item(step_folder / item, dict.fromkeys(marks), marks)
    return meta


def verified(folders: Sequence[Path]) -> Iterator[tuple[str, bool]]:
    """A line for each step, and whether it is good; one that a live run deletes is left out."""
    for folder in folders:
        try:
            meta = verify(folder)
            yield f"{folder.name}: good, {len(meta['arrays'])} arrays, {size_text(disk.size(folder))}", True
        except Damaged as damage:
            if disk.vanishes(folder):
                continue
            yield f"{folder.name}: damaged: {damage}", False


def size_text(size: float) -> str:
    """Bytes as people read them: `1.21 GB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(size, 1)) // 3), len(units) - 1)
    return f"{size / 1000**power:.3g} {units[power]}"


def _row(folder: Path) -> tuple[str, ...] | None:
    size = size_text(disk.size(folder))
    try:
        meta = disk.read_meta(folder)
    except Damaged as damage:
        if disk.vanishes(folder):
            return None
        return folder.name, UNKNOWN, size, *[UNKNOWN] * 5, f"damaged: {damage}"
    made = meta.get("environment") or {}
    commit = made.get("commit") or UNKNOWN
    return (
        folder.name,
        meta.get("saved", UNKNOWN),
        size,
        str(len(meta["arrays"])),
        made.get("vlm_jax", UNKNOWN),
        commit[:8] + ("+" if commit.endswith("+") else ""),
        made.get("packages", {}).get("jax", UNKNOWN),
        " and ".join(f"{count} x {kind}" for kind, count in made.get("devices", {}).items()) or UNKNOWN,
        "milestone" if meta.get("milestone") else "",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value
