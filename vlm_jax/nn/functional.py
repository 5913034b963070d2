"""The boundary to Flax NNX: a module becomes pure functions over a plain nested dict of arrays.

No NNX object leaves this file's functions. Dicts cross a jit boundary several times faster than NNX state, and
checkpoints, sharding rules and optimizers see nothing but names and arrays.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from vlm_jax import tree
from vlm_jax.errors import UserError

Params = dict[str, Any]


@contextlib.contextmanager
def _tree_mode() -> Iterator[None]:
    """NNX as trees: no shared references, no state carried through transforms, no mesh needed to build a module."""
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False), nnx.use_eager_sharding(False):
        yield


class Functional:
    """Pure functions over an NNX module that has parameters and no other state.

    Args:
      module: the module's class, or a function that makes it; called as `module(*args, **kwargs, rngs=rngs)`, once for
        each set of initial parameters and once to learn the structure. Nothing is made before it is needed.
    """

    def __init__(self, module: Callable[..., nnx.Module], *args, **kwargs):
        self._build = functools.partial(module, *args, **kwargs)

    def init(self, key: Array) -> Params:
        """Parameters as nested dicts of f32 arrays, named as the module's attributes are."""
        with _tree_mode():
            return nnx.to_pure_dict(nnx.state(self._build(rngs=nnx.Rngs(key)), nnx.Param))

    def __call__(self, params: Params, *args, method: str = "__call__", **kwargs):
        """Calls `method` of the module with these parameters; works inside jit, grad, vmap and scan.

        Raises:
          UserError: the names of `params` are not the module's. NNX itself would assign leaves by position.
        """
        graph, structure = self._graph
        if jax.tree.structure(params) != structure:
            raise UserError(_difference(params, structure))
        with _tree_mode():
            return getattr(nnx.merge(graph, params), method)(*args, **kwargs)

    @functools.cached_property
    def _graph(self):
        with _tree_mode():
            graph, params = nnx.split(nnx.eval_shape(lambda: self._build(rngs=nnx.Rngs(0))), nnx.Param)
            return graph, jax.tree.structure(nnx.to_pure_dict(params))


def _difference(params: Params, structure) -> str:
    wanted = set(tree.flatten(jax.tree.unflatten(structure, range(structure.num_leaves))))
    given = set(tree.flatten(params))
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    return f"the parameters do not fit the model: missing {missing or 'none'}, unknown {unknown or 'none'}."
