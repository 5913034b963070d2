"""All pairs of rows and columns, tile by tile, so that the matrix of all pairs is never in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a tile of logits: 16 MiB in f32. On a TPU v5e, of the sizes tried, the one whose accumulators all stay in VMEM.
MOST_ROWS, MOST_COLUMNS = 1024, 4096


class Fold(NamedTuple):
    """How parts are put together: `merge` of two trees, and `empty`, the tree of the same shapes that changes none."""

    merge: Callable
    empty: Callable


SUM = Fold(lambda a, b: jax.tree.map(jnp.add, a, b), lambda a: jax.tree.map(jnp.zeros_like, a))


def over_tiles(f: Callable, fold: Fold, rows, columns, row_acc, column_acc):
    """Folds `f(rows, columns) -> (row_part, column_part)` of every tile into the accumulators.

    All are trees of arrays: the leading axis is the row in `rows`, `row_acc` and `row_part`, the column in the
    others. Where equal tiles do not fit, zeros are added (see `is_padded`), which `f` must not count.

    Returns:
      `(row_acc, column_acc)`. The given `column_acc` is not used before the last tile of its columns, so that it
      may still be on its way while the others are computed.
    """
    n_rows, n_columns = _length(rows), _length(columns)
    (row_tiles, row_tile), (column_tiles, column_tile) = _tiles(n_rows, n_columns)
    rows, row_acc = _pad((rows, row_acc), row_tiles * row_tile)
    columns, column_acc = _pad((columns, column_acc), column_tiles * column_tile)

    def strip(j, carry):  # all rows, one tile of columns
        row_acc, column_acc = carry
        here, acc = _take((columns, column_acc), j, column_tile)

        def tile(i, carry):
            row_acc, column_part = carry
            row_part, part = f(_take(rows, i, row_tile), here)
            row_part = fold.merge(_take(row_acc, i, row_tile), row_part)
            return _put(row_acc, i, row_part), fold.merge(column_part, part)

        # The last tile is out of the loop, where the compiler merges its product and `column_acc` in one go.
        carry = _loop(row_tiles - 1, tile, (row_acc, fold.empty(acc)))
        row_acc, column_part = tile(row_tiles - 1, carry)
        return row_acc, _put(column_acc, j, fold.merge(acc, column_part))

    row_acc, column_acc = _loop(column_tiles, strip, (row_acc, column_acc))
    return jax.tree.map(lambda x: x[:n_rows], row_acc), jax.tree.map(lambda x: x[:n_columns], column_acc)


def is_padded(n_rows: int, n_columns: int) -> bool:
    """Whether `over_tiles` adds rows or columns of zeros."""
    return any(tiles * tile > n for n, (tiles, tile) in zip((n_rows, n_columns), _tiles(n_rows, n_columns)))


def _tiles(n_rows: int, n_columns: int) -> list[tuple[int, int]]:
    """Number and size of the row tiles, and of the column tiles: as few as may be, and as even as may be."""
    counts = math.ceil(n_rows / MOST_ROWS), math.ceil(n_columns / MOST_COLUMNS)
    return [(count, math.ceil(n / count)) for n, count in zip((n_rows, n_columns), counts)]


def _loop(times: int, body: Callable, carry):
    return carry if times == 0 else body(0, carry) if times == 1 else jax.lax.fori_loop(0, times, body, carry)


def _length(tree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _pad(tree, n: int):
    return jax.tree.map(lambda x: jnp.pad(x, [(0, n - x.shape[0])] + [(0, 0)] * (x.ndim - 1)), tree)


def _take(tree, i, size: int):
    """Tile `i` of every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size), tree)


def _put(tree, i, tile):
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, i * y.shape[0], 0), tree, tile)
