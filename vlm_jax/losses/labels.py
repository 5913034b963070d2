"""Rows and columns of the matrix of all pairs: features, and what tells which pairs are positives and which count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import Pairs, vary, varying, wide
from .ring import Ring


def travelling_texts(pairs: Pairs, ring: Ring) -> dict[str, jax.Array]:
    """The texts of this device's group, and those of their labels that another device cannot know."""
    labels = {"x": pairs.text, "id": pairs.ids, "counts": pairs.mask}
    return ring.gather({name: x for name, x in labels.items() if x is not None})


def rows_and_columns(pairs: Pairs, ring: Ring, origin, travels: dict[str, jax.Array]):
    """This device's images and the texts that came from the group `origin`, each as `x`, `id` and `counts`.

    Where no ids are given, the id of a pair is its row in the batch, counted from the first row of `origin`.
    """
    batch, width = pairs.image.shape[0], travels["x"].shape[0]
    row_ids, column_ids = pairs.ids, travels.get("id")
    if row_ids is None:
        device = jax.lax.axis_index(ring.axes) if ring.axes else 0
        row_ids, column_ids = jnp.arange(batch) + device * batch - origin * width, ring.row_numbers(batch)
    rows = {"x": pairs.image, "id": row_ids, "counts": pairs.mask}
    return rows, {"x": travels["x"], "id": column_ids, "counts": travels.get("counts")}


def positives(rows, columns) -> jax.Array:
    """Which pairs of a tile are positives."""
    return rows["id"][:, None] == columns["id"][None, :]


def where_counts(counts: jax.Array | None, x: jax.Array, other=0) -> jax.Array:
    """`x` at the pairs of a tile that count, `other` at the rest."""
    return x if counts is None else jnp.where(counts, x, other)


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A matrix product of features in their own type, summed in the wide one."""
    return jnp.einsum(subscripts, x.astype(y.dtype), y, preferred_element_type=wide(y.dtype))


def cast_tile(x: jax.Array, dtype) -> jax.Array:
    """Casts a tile, and not the array that it is of: the TPU compiler would move a mere cast out of the loop."""
    if x.dtype == dtype:
        return x
    one = jax.lax.optimization_barrier(jnp.ones((), x.dtype))
    return (x * one).astype(dtype)


def zeros(like: jax.Array, *shape: int) -> jax.Array:
    """Accumulators for sums over the features `like`, varying over the same axes."""
    return vary(jnp.zeros(shape, wide(like.dtype)), varying(like))
