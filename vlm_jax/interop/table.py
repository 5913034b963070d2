"""Tables of names between our parameters and another library's, from which both import and export follow.

A table is a tuple of `Rule`s. One says that some arrays of ours, joined along their last axis, are some arrays of
theirs, each in a `Layout`: so the fused query, key and value of ours are three matrices elsewhere. Names may have the
part `{layer}`. A rule whose array our model does not have says nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.interop.tensors import Tensors

Shapes = Mapping[str, tuple[int, ...]]
LISTED = 5  # names of each kind in a message


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array lies in the other library: `write` ours to theirs, `read` theirs to ours, of a given shape."""

    write: Callable[[Any], Any]
    read: Callable[[Any, tuple[int, ...]], Any]


SAME = Layout(lambda x: x, lambda x, shape: x)
TRANSPOSED = Layout(lambda x: x.T, lambda x, shape: x.T)
OIHW = Layout(lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0))
FLAT_PATCH = Layout(lambda x: x.reshape(-1, x.shape[-1]).T, lambda x, shape: x.T.reshape(shape))


def _reshaped(write: Callable[[Any], Any]) -> Layout:
    return Layout(write, lambda x, shape: x.reshape(shape))


LEADING_1 = _reshaped(lambda x: x.reshape(1, *x.shape))
LEADING_2 = _reshaped(lambda x: x.reshape(1, 1, *x.shape))

# Positions, of which the first, for CLS, is zero and not there.
UNPLACED = Layout(lambda x: x[None, 1:], lambda x, shape: np.concatenate([np.zeros_like(x[0, :1]), x[0]]))

# Positions, before which there are two that no token ever takes: they are written as zeros.
AFTER_TWO = Layout(
    lambda x: (np if isinstance(x, np.ndarray) else jnp).pad(x, ((2, 0), (0, 0))), lambda x, shape: x[2:]
)


def heads_last(num_heads: int) -> Layout:
    """[..., width] as [..., heads, width / heads]."""
    return _reshaped(lambda x: x.reshape(*x.shape[:-1], num_heads, -1))


def heads_first(num_heads: int) -> Layout:
    """[width, dim] as [heads, width / heads, dim]."""
    return _reshaped(lambda x: x.reshape(num_heads, -1, x.shape[-1]))


@dataclasses.dataclass(frozen=True)
class Rule:
    """`ours`, joined along the last axis, is `theirs`, which are equal parts of it."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout = SAME


Table = tuple[Rule, ...]


def leaf(ours: str, theirs: str, layout: Layout = SAME) -> Table:
    """One array."""
    return (Rule((ours,), (theirs,), layout),)


def linear(ours: str | tuple[str, ...], *theirs: str) -> Table:
    """A torch `Linear`; several of theirs are side by side in ours."""
    ours = (ours,) if isinstance(ours, str) else ours
    both = lambda kind, weight, layout: Rule(
        tuple(f"{name}/{kind}" for name in ours), tuple(f"{name}{weight}" for name in theirs), layout
    )
    return both("kernel", ".weight", TRANSPOSED), both("bias", ".bias", SAME)


def fused(ours: str | tuple[str, ...], theirs: str) -> Table:
    """The `in_proj_weight` and `in_proj_bias` of a torch `MultiheadAttention`."""
    ours = (ours,) if isinstance(ours, str) else ours
    kernels, biases = (tuple(f"{name}/{kind}" for name in ours) for kind in ("kernel", "bias"))
    return Rule(kernels, (f"{theirs}.in_proj_weight",), TRANSPOSED), Rule(biases, (f"{theirs}.in_proj_bias",))


def by_head(ours: tuple[str, ...], theirs: str, heads: int) -> Table:
    """A torch `Linear` of query, key and value, whose rows are head by head, of each head the three."""

    def write(x):
        return x.reshape(*x.shape[:-1], 3, heads, -1).swapaxes(-3, -2).reshape(x.shape).T

    def read(x, shape):
        x = x.T
        return x.reshape(*x.shape[:-1], heads, 3, -1).swapaxes(-3, -2).reshape(shape)

    both = (("kernel", "weight"), ("bias", "bias"))
    rule = lambda kind, named: Rule(tuple(f"{n}/{kind}" for n in ours), (f"{theirs}.{named}",), Layout(write, read))
    return tuple(rule(kind, named) for kind, named in both)


def norm(ours: str, theirs: str) -> Table:
    """A torch `LayerNorm`."""
    return leaf(f"{ours}/scale", f"{theirs}.weight") + leaf(f"{ours}/bias", f"{theirs}.bias")


def conv(ours: str, theirs: str) -> Table:
    """A torch `Conv2d`."""
    return leaf(f"{ours}/kernel", f"{theirs}.weight", OIHW) + leaf(f"{ours}/bias", f"{theirs}.bias")


def within(ours: str, theirs: str, table: Table) -> Table:
    """A table whose names all lie under `ours` and `theirs`, prefixes as they are written."""
    add = lambda prefix, names: tuple(prefix + name for name in names)
    return tuple(Rule(add(ours, rule.ours), add(theirs, rule.theirs), rule.layout) for rule in table)


def expand(table: Table, template: Shapes) -> list[Rule]:
    """The rules that speak of arrays in `template`, one for each layer. Raises KeyError for an array without a rule."""
    rules, spoken = [], set()
    for rule in table:
        pattern = re.compile(re.escape(rule.ours[0]).replace(re.escape("{layer}"), r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, template)):
            name = match[1] if match.groups() else ""
            ours = tuple(part.replace("{layer}", name) for part in rule.ours)
            theirs = tuple(part.replace("{layer}", str(int(name)) if name else "") for part in rule.theirs)
            rules.append(Rule(ours, theirs, rule.layout))
            spoken.update(ours)
    if missing := sorted(set(template) - spoken):
        raise KeyError(missing[0])
    return rules


def export(table: Table, params: Mapping[str, Any], xp: ModuleType = np) -> dict[str, Any]:
    """Their arrays from ours, by name. Raises KeyError for an array that the table has no name for."""
    out = {}
    for rule in expand(table, {name: value.shape for name, value in params.items()}):
        parts = [params[name] for name in rule.ours]
        whole = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-1)
        pieces = [whole] if len(rule.theirs) == 1 else xp.split(whole, len(rule.theirs), axis=-1)
        out.update(zip(rule.theirs, map(rule.layout.write, pieces)))
    return out


def wanted(table: Table, template: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of their arrays for a model whose arrays have the names and shapes of `template`."""
    ours = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in template.items()}
    theirs = jax.eval_shape(lambda params: export(table, params, jnp), ours)
    return {name: value.shape for name, value in theirs.items()}


def load(table: Table, template: Shapes, source: Tensors, ignored: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Our arrays, f32, from theirs.

    Args:
      table: of the family.
      template: names and shapes of our model's arrays.
      source: their arrays.
      ignored: regular expressions of names that this model does without.

    Raises:
      UserError: tensors are missing, of another shape, or not used; nothing has been read then.
    """
    account(wanted(table, template), source, ignored)
    out = {}
    for rule in expand(table, template):
        shapes = [template[name] for name in rule.ours]
        total = (*shapes[0][:-1], sum(shape[-1] for shape in shapes)) if shapes[0] else ()
        piece = (*total[:-1], total[-1] // len(rule.theirs)) if total else ()
        pieces = [rule.layout.read(source.read(name), piece) for name in rule.theirs]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
        ends = list(itertools.accumulate(shape[-1] for shape in shapes)) if total else []
        for name, part in zip(rule.ours, np.split(whole, ends[:-1], axis=-1) if len(ends) > 1 else [whole]):
            out[name] = np.ascontiguousarray(part).reshape(template[name])
    return out


def account(needed: Shapes, source: Tensors, ignored: Sequence[str] = ()) -> None:
    """Raises UserError, in one line, unless `source` has what is needed and nothing else but what is ignored."""
    held = source.shapes
    missing = [name for name in needed if name not in held]
    wrong = [
        f"{name} {list(held[name])} where {list(shape)} is wanted"
        for name, shape in needed.items()
        if name in held and tuple(held[name]) != tuple(shape)
    ]
    unused = [n for n in held if n not in needed and not any(re.fullmatch(pattern, n) for pattern in ignored)]
    found = {"missing": missing, "of another shape": wrong, "unused": unused}
    if any(found.values()):
        parts = "; ".join(f"{kind}: {_some(names)}" for kind, names in found.items() if names)
        raise UserError(f"{source.where} does not fit the model that its config describes: {parts}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
