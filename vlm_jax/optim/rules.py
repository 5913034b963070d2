"""Rules by parameter name: what is frozen, what decays, and how fast each layer learns.

A rule is a regular expression that matches the whole per-layer name (`.*/bias`, `image/blocks/0[0-5]/.*`). Where layers
are scanned, the values of a rule become a vector along the leading axis of the stacked leaf.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vlm_jax import tree
from vlm_jax.errors import UserError, closest

Tree = Any
Values = dict[str, np.ndarray]
_BLOCK = re.compile(r"(?P<tower>(?:.*/)?)blocks/(?P<index>\d+)/.*")


def layer_names(params: Tree, stacks: Mapping[str, int]) -> dict[str, list[str]]:
    """Per-layer names of every live leaf: one, or one a layer for a stacked leaf."""
    return {
        name: tree.per_layer_names(name, leaf.shape, stacks) or [name] for name, leaf in tree.flatten(params).items()
    }


def values(function: Callable[[str], float], params: Tree, stacks: Mapping[str, int]) -> Values:
    """`function` of every per-layer name, by live name: [1], or [depth] for a stacked leaf."""
    return {
        live: np.asarray([function(name) for name in names], np.float32)
        for live, names in layer_names(params, stacks).items()
    }


def along(value: np.ndarray, leaf: Array) -> Array:
    """A value of `values` in the leaf's dtype, shaped so that it broadcasts over the leaf: [depth, 1, ...] or []."""
    shape = (-1,) + (1,) * (leaf.ndim - 1) if value.size > 1 else ()
    return jnp.asarray(value, leaf.dtype).reshape(shape)


def check(field: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raises UserError for a pattern that is no regular expression, or matches no name."""
    for pattern in patterns:
        try:
            matched = any(re.fullmatch(pattern, name) for name in names)
            inside = not matched and any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f"optimizer.{field}: {pattern!r} is no regular expression: {error}.") from error
        if not matched:
            hint = f"did you mean '.*{pattern}.*'?" if inside else closest(pattern, names)
            raise UserError(f"optimizer.{field}: {pattern!r} matches the whole name of no parameter; {hint}")


def depths(names: Iterable[str]) -> dict[str, int]:
    """Number of blocks of every tower, by the prefix of its names (`image/`; empty for a model that is one tower)."""
    out: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.fullmatch, names)):
        out[match["tower"]] = max(out.get(match["tower"], 0), int(match["index"]) + 1)
    return out


def layer_decay(decay: float, names: Sequence[str]) -> Callable[[str], float]:
    """Layer-wise learning-rate decay (Clark et al. 2020, arXiv:2003.10555; numbered as in BEiT, arXiv:2106.08254).

    Block i of a tower with D gets decay^(D - i), its embeddings decay^(D + 1); what comes after the blocks, and what is
    in no tower, 1.

    Raises:
      UserError: there are no blocks.
    """
    towers = depths(names)
    if not towers:
        raise UserError("optimizer.layer_decay needs parameters named `blocks/NN/...`; there are none.")

    def multiplier(name: str) -> float:
        if match := _BLOCK.fullmatch(name):
            return decay ** (towers[match["tower"]] - int(match["index"]))
        embeds = [depth for tower, depth in towers.items() if name.startswith(f"{tower}embed/")]
        return decay ** (embeds[0] + 1) if embeds else 1.0

    return multiplier


def check_lock(lock: Mapping[str, str | int], names: Sequence[str]) -> None:
    """Raises UserError for a tower that is not there, or has fewer blocks than are to stay free."""
    towers = depths(names)
    for tower, last in lock.items():
        depth = towers.get(f"{tower}/")
        if depth is None:
            known = [prefix.rstrip("/") for prefix in towers]
            raise UserError(f"optimizer.lock: there is no tower {tower!r} with blocks; {closest(tower, known)}")
        if last != "all" and not 0 <= last <= depth:
            raise UserError(f"optimizer.lock: {tower!r} has {depth} blocks, {last} cannot be left free.")


def locked(lock: Mapping[str, str | int], names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a parameter is locked: all of a tower, or its embeddings and all but its last k blocks."""
    towers = depths(names)

    def is_locked(name: str) -> bool:
        for tower, last in lock.items():
            if not name.startswith(f"{tower}/"):
                continue
            if last == "all" or name.startswith(f"{tower}/embed/"):
                return True
            match = _BLOCK.fullmatch(name)
            if match and match["tower"] == f"{tower}/":
                return int(match["index"]) < towers[match["tower"]] - last
        return False

    return is_locked


def merge(trained: Tree, frozen: Tree) -> dict:
    """All parameters, from the two parts that `Optimizer.split` makes."""
    return tree.unflatten({**tree.flatten(trained), **tree.flatten(frozen)})


def part(params: Tree, frozen: Values) -> tuple[dict, dict]:
    """(trained, frozen): leaves that are frozen in all their layers go to the second."""
    leaves = tree.flatten(params)
    return (
        tree.unflatten({name: leaf for name, leaf in leaves.items() if not frozen[name].all()}),
        tree.unflatten({name: leaf for name, leaf in leaves.items() if frozen[name].all()}),
    )
