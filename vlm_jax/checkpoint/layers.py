"""Between live trees and what is on disk: one array a layer, by name, placed as the live leaf is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from vlm_jax import tree

Tree = Any
Leaves = dict[str, Any]


def to_layers(live: Tree, stacks: Mapping[str, int]) -> Leaves:
    """Arrays, or shapes, of a live tree by per-layer name; empty ones, which cannot be stored, are left out.

    Stacked leaves are cut up on the devices, which holds a second copy of them until it is saved.
    """
    out: Leaves = {}
    for name, leaf in tree.flatten(live).items():
        names = tree.per_layer_names(name, leaf.shape, stacks)
        if names is None:
            out[name] = leaf
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=of_layer(leaf.sharding))
            out.update((name, layer) for name in names)
        else:
            leaf = jnp.asarray(leaf)
            out.update(zip(names, _cut(of_layer(leaf.sharding))(leaf)))
    return {name: leaf for name, leaf in out.items() if leaf.size}


def to_live(abstract: Tree, layers: Leaves, stacks: Mapping[str, int]) -> Tree:
    """The inverse: a tree like `abstract`, placed as its shapes say. Takes the arrays out of `layers` on the way."""

    def one(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        names = tree.per_layer_names(name, leaf.shape, stacks)
        if names is None:
            return layers.pop(name)
        return _pile(leaf.sharding)([layers.pop(name) for name in names])

    return tree.map_with_name(one, abstract)


def of_layer(sharding: Sharding | None) -> Sharding | None:
    """The sharding of one layer of a stacked leaf."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)


def grouped(told: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, what) for arrays of which something is told by name; layers of which the same is told share one entry."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, what in told.items():
        groups.setdefault((re.sub(r"/\d+/", "/*/", name), what), []).append(name)
    return [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names)} arrays)", what)
        for (pattern, what), names in groups.items()
    ]


@functools.cache
def _cut(sharding: Sharding | None):
    return jax.jit(lambda x: [x[i] for i in range(x.shape[0])], out_shardings=sharding)


@functools.cache
def _pile(sharding: Sharding | None):
    return jax.jit(lambda layers: jnp.stack(layers), out_shardings=sharding)
