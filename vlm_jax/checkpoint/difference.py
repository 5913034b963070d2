"""What differs between two checkpoints: config, environment, data state, and arrays by their fingerprints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import config as configs
from vlm_jax import tree
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.arrays import read_item
from vlm_jax.checkpoint.fingerprint import differing
from vlm_jax.checkpoint.folder import Damaged
from vlm_jax.checkpoint.layers import grouped
from vlm_jax.errors import UserError

PARTS = ("config", "environment", "data", "preprocessing")


def difference(a: Path, b: Path, values: bool = False) -> tuple[list[str], bool]:
    """(lines, whether all arrays are the same) of two folders of steps.

    Args:
      values: read the arrays that differ; the lines then have their largest difference, and its norm beside a's.

    Raises:
      UserError: one of them is damaged.
    """
    metas = [disk.read_good_meta(folder) for folder in (a, b)]
    lines = [f"a: {a}", f"b: {b}"]
    for part in PARTS:
        lines += [f"{part}: {line}" for line in configs.changes(*(meta.get(part) or {} for meta in metas))]
    here, there = (meta["arrays"] for meta in metas)
    names = differing(*(meta["fingerprints"] for meta in metas))
    told = {name: f"{here.get(name, 'missing')} -> {there.get(name, 'missing')}" for name in names}
    alike = [name for name in names if here.get(name) == there.get(name)]
    told |= dict.fromkeys(alike, "other values")
    if values:
        told |= _by_how_much(a, b, alike)
    lines += [f"arrays: {len(here.keys() & there.keys()) - len(alike)} are the same, {len(names)} differ"]
    return [*lines, *(f"  {name}: {what}" for name, what in grouped(told))], not names


def _by_how_much(a: Path, b: Path, names: Iterable[str]) -> dict[str, str]:
    told = {}
    names = set(names)
    for item in sorted({name.split("/")[0] for name in names}):
        found = [_read(folder, item) for folder in (a, b)]
        for name in sorted(name for name in names if name.startswith(f"{item}/")):
            old, new = (arrays[name.removeprefix(f"{item}/")].astype(np.float64) for arrays in found)
            norm = np.linalg.norm(old)
            share = f", {np.linalg.norm(new - old) / norm:.2g} of its norm" if norm else ""
            told[name] = f"at most {np.abs(new - old).max():.3g} apart{share}"
    return told


def _read(folder: Path, item: str) -> dict[str, Any]:
    marks = disk.of_item(item, disk.read_meta(folder)["fingerprints"])
    try:
        return tree.flatten(read_item(folder / item, dict.fromkeys(marks), marks))
    except Damaged as damage:
        raise UserError(f"{folder} is damaged: {damage}.") from damage
