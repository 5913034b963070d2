"""Pieces of the dense contrastive losses: a device's rows of the logits against the columns of the whole batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import Pairs


def all_rows(x: jax.Array, pairs: Pairs) -> jax.Array:
    """The rows [B, ...] of the whole batch, from every device's [b, ...], in flattened axis order."""
    return jax.lax.all_gather(x, pairs.axes, tiled=True) if pairs.axes else x


def similarities(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Inner products [b, B], summed in f32 whatever the features are."""
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    return jnp.einsum("id,jd->ij", rows, columns, preferred_element_type=wide)


def positives(pairs: Pairs) -> jax.Array:
    """Which of a device's pairs [b, B] are positives: the diagonal of the whole batch, or equal ids."""
    if pairs.ids is not None:
        return pairs.ids[:, None] == all_rows(pairs.ids, pairs)[None, :]
    rows = jnp.arange(pairs.image.shape[0])
    columns = jnp.arange(pairs.image.shape[0] * pairs.devices)
    first = jax.lax.axis_index(pairs.axes) * rows.size if pairs.axes else 0
    return first + rows[:, None] == columns[None, :]


def count_pairs(pairs: Pairs) -> jax.Array:
    """How many pairs of the whole batch count, f32; at least 1, so that an empty batch has loss 0."""
    if pairs.mask is None:
        return jnp.float32(pairs.image.shape[0] * pairs.devices)
    count = pairs.mask.sum(dtype=jnp.float32)
    return jnp.maximum(jax.lax.psum(count, pairs.axes) if pairs.axes else count, 1)
