"""Transformations that see every layer of a scanned stack by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from vlm_jax import tree

Tree = Any


def vectorized(transform: optax.GradientTransformation, stacks: Mapping[str, int]) -> optax.GradientTransformation:
    """`transform` on every layer of a scanned stack by itself, as it acts where layers are unrolled.

    For transformations whose statistics of a leaf span the whole leaf (factored moments). Layers are mapped over, not
    split, and the state is stacked as the parameters are.
    """

    def depth_of(name: str) -> int | None:
        found = (depth for group, depth in stacks.items() if tree.per_layer_names(name, (depth,), {group: depth}))
        return next(found, None)

    def axes(node: Tree, depth: int) -> Tree:
        return tree.map_with_name(lambda name, _: 0 if depth_of(name) == depth else None, node)

    def depths_in(node: Tree) -> list[int]:
        return sorted({depth_of(name) for name in tree.flatten(node)} - {None})

    def init(params: Tree) -> Tree:
        function, state = transform.init, jax.eval_shape(transform.init, params)
        for depth in depths_in(params):
            function = jax.vmap(function, in_axes=(axes(params, depth),), out_axes=axes(state, depth))
        return function(params)

    def update(updates: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        function = transform.update
        for depth in depths_in(updates):
            a, s = axes(updates, depth), axes(state, depth)
            function = jax.vmap(function, in_axes=(a, s, a), out_axes=(a, s))
        return function(updates, state, params)

    return optax.GradientTransformation(init, update)
