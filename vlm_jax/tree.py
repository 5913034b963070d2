"""Trees by the names of their leaves, `image/blocks/07/attn/qkv/kernel`, and scanned layers as one stacked leaf.

On disk, in rules and in exports every layer has a name of its own. Where layers are scanned, the live tree holds one
leaf `image/blocks/attn/qkv/kernel` with a leading axis over layers; `stack` and `unstack` convert. `stacks` maps the
name of each scanned group to its depth: `{"image/blocks": 12}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def _part(key) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def name_of(path) -> str:
    """The `/`-joined name of a JAX key path."""
    return "/".join(_part(key) for key in path)


def flatten(tree: Tree) -> dict[str, Any]:
    """Leaves by name, in JAX's order. Works on dicts, optimizer states and any other pytree."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """Nested dicts from leaves by name."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def map_with_name(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`jax.tree.map` whose function gets the leaf's name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def like(template: Tree, leaves: Mapping[str, Any]) -> Tree:
    """A tree with the structure of `template` and the leaves that `leaves` holds by name. Raises KeyError."""
    return map_with_name(lambda name, _: leaves[name], template)


def layer_name(depth: int, index: int) -> str:
    """The name of a layer on disk: zero-padded so that names sort as layers do."""
    return f"{index:0{max(2, len(str(depth - 1)))}d}"


def _group(name: str, stacks: Mapping[str, int]) -> tuple[str, str, str, int] | None:
    """(before, group, after, depth) where `name` lies in a scanned group; optimizer states prefix names."""
    for group, depth in stacks.items():
        match = re.match(rf"(?P<before>(?:.*/)?){re.escape(group)}/(?P<after>.+)$", name)
        if match:
            return match["before"], group, match["after"], depth
    return None


def per_layer_names(name: str, shape: tuple[int, ...], stacks: Mapping[str, int]) -> list[str] | None:
    """The per-layer names of a live leaf, or None for a leaf that no scan stacks."""
    found = _group(name, stacks)
    if found is None or not shape or shape[0] != found[3]:
        return None
    before, group, after, depth = found
    return [f"{before}{group}/{layer_name(depth, i)}/{after}" for i in range(depth)]


def unstack(tree: Tree, stacks: Mapping[str, int]) -> dict:
    """Nested dicts with one leaf a layer, from a live tree. Shapes (`ShapeDtypeStruct`) are unstacked as shapes."""
    out: dict[str, Any] = {}
    for name, leaf in flatten(tree).items():
        names = per_layer_names(name, leaf.shape, stacks)
        if names is None:
            out[name] = leaf
        else:
            for i, layer in enumerate(names):
                out[layer] = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if _abstract(leaf) else leaf[i]
    return unflatten(out)


def stack(tree: Tree, stacks: Mapping[str, int]) -> dict:
    """Nested dicts with one stacked leaf a group: the inverse of `unstack`."""
    groups: dict[str, list] = {}
    out: dict[str, Any] = {}
    for name, leaf in sorted(flatten(tree).items()):
        found = _group(name, stacks)
        layer = re.match(r"\d+/(.+)$", found[2]) if found else None
        if layer is None:
            out[name] = leaf
        else:
            groups.setdefault(f"{found[0]}{found[1]}/{layer[1]}", []).append(leaf)
    for name, layers in groups.items():
        if _abstract(layers[0]):
            out[name] = jax.ShapeDtypeStruct((len(layers), *layers[0].shape), layers[0].dtype)
        else:
            out[name] = jnp.stack(layers)
    return unflatten(out)


def _abstract(leaf) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
