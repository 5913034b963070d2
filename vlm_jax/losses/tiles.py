"""All pairs of rows and columns, tile by tile, so that the matrix of all pairs is never in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a tile of logits, 16 MiB in f32: of the sizes tried, the one whose accumulators all stay in a TPU v5e's VMEM.
MOST = (1024, 4096)
LANES = 128


class Fold(NamedTuple):
    """How parts are put together: `merge` of two trees, and `empty`, the tree of the same shapes that changes none."""

    merge: Callable
    empty: Callable


SUM = Fold(lambda a, b: jax.tree.map(jnp.add, a, b), lambda a: jax.tree.map(jnp.zeros_like, a))


def _is_log(name: str) -> bool:
    return name.endswith("lse")


# Of dicts: what is called `lse` or `..._lse` is the log-sum-exp of its parts, the rest is their sum.
LSE_OR_SUM = Fold(
    lambda a, b: {name: (jnp.logaddexp if _is_log(name) else jnp.add)(a[name], b[name]) for name in a},
    lambda a: {name: jnp.full_like(x, -jnp.inf if _is_log(name) else 0) for name, x in a.items()},
)


def over_tiles(f: Callable, fold: Fold, rows: dict, columns: dict, row_acc, column_acc, most=None):
    """Folds `f(rows, columns, counts) -> (row_part, column_part)` of every tile into the accumulators.

    All are trees of arrays: the leading axis is the row in `rows`, `row_acc` and `row_part`, the column in the
    others. `rows` and `columns` have features `x`, and `counts`: which of them count, or None for all. `f` gets the
    pairs that count, in a shape that broadcasts to [rows, columns], or None for all; the rest must change nothing.

    Args:
      most: most rows and columns of a tile; `MOST` if None. Where no equal tiles fit, the last one goes back over
        some rows that were counted before.

    Returns:
      `(row_acc, column_acc)`. The given `column_acc` is not used before the last tile of its columns, so that it
      may still be on its way while the others are computed.
    """
    n_rows, n_columns = rows["x"].shape[0], columns["x"].shape[0]
    row_tile, column_tile = (_tile_size(n, m) for n, m in zip((n_rows, n_columns), most or MOST))
    row_tiles, column_tiles = math.ceil(n_rows / row_tile), math.ceil(n_columns / column_tile)

    def strip(j, carry):  # all rows, one tile of columns
        row_acc, column_acc = carry
        here, acc = _take_counted(columns, j, column_tile), _take(column_acc, j, column_tile)

        def tile(i, carry):
            row_acc, column_part = carry
            these = _take_counted(rows, i, row_tile)
            row_part, part = f(these, here, _pairs_that_count(these, here))
            row_part = fold.merge(_take(row_acc, i, row_tile), row_part)
            return _put(row_acc, i, row_part), fold.merge(column_part, part)

        # The last tile is out of the loop, where the compiler merges its product and `column_acc` in one go.
        carry = _loop(row_tiles - 1, tile, (row_acc, fold.empty(acc)))
        row_acc, column_part = tile(row_tiles - 1, carry)
        return row_acc, _put(column_acc, j, fold.merge(acc, column_part))

    return _loop(column_tiles, strip, (row_acc, column_acc))


def _tile_size(n: int, most: int) -> int:
    """Of as few tiles as may be, as even as may be; of whole vectors where it is longer than one."""
    even = math.ceil(n / math.ceil(n / most))
    return even if even <= LANES else min(n, math.ceil(even / LANES) * LANES)


def _loop(times: int, body: Callable, carry):
    return carry if times == 0 else body(0, carry) if times == 1 else jax.lax.fori_loop(0, times, body, carry)


def _take(tree, i, size: int):
    """Tile `i` of every array; the last one starts early where it would go over the end."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size), tree)


def _put(tree, i, tile):
    put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), i * y.shape[0], 0)
    return jax.tree.map(put, tree, tile)


def _take_counted(side: dict, i, size: int) -> dict:
    """Tile `i`, in which nothing counts that was in the tile before."""
    tile, n = _take(side, i, size), side["x"].shape[0]
    if n % size == 0:
        return tile
    new = jnp.arange(size) >= i * size - jnp.minimum(i * size, n - size)
    return tile | {"counts": new if tile["counts"] is None else new & tile["counts"]}


def _pairs_that_count(rows: dict, columns: dict) -> jax.Array | None:
    if rows["counts"] is None and columns["counts"] is None:
        return None
    every = jnp.ones(1, bool)
    of_rows, of_columns = (every if side["counts"] is None else side["counts"] for side in (rows, columns))
    return of_rows[:, None] & of_columns[None, :]
