"""Kernels inside `jax.shard_map`: the type of what they return follows from that of what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array


def same_type(operands: Sequence[Array]) -> tuple[list[Array], Any]:
    """The operands, all varying over the mesh axes over which any of them does, and that type for the results."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in operands))
    cast = []
    for x in operands:
        missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
        cast.append(jax.lax.pcast(x, missing, to="varying") if missing else x)
    return cast, jax.typeof(cast[0]).manual_axis_type
