"""Keys and values of the tokens that were there before, so that one more token costs no more than itself.

A cache is arrays, or nested dicts of them, that functions take and return. The first axis of every leaf is the batch,
so that `jax.tree.map(lambda x: x[rows], cache)` picks rows; how many tokens each row has is kept beside it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.nn import pool, shard


def append(
    cache: Float[Array, "batch size dim"], new: Float[Array, "batch time dim"], length: Int[Array, " batch"]
) -> Float[Array, "batch size dim"]:
    """The cache with `new` at the places `length`, `length + 1`, ... of each row, for which there has to be room."""
    put = lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new.astype(row.dtype), at, axis=0)
    return jax.vmap(put)(cache, new, length)


def attend_after(
    qkv: Float[Array, "batch time three_dim"],
    cache: Float[Array, "batch size two_dim"],
    length: Int[Array, " batch"],
    *,
    num_heads: int,
) -> tuple[Float[Array, "batch time dim"], Float[Array, "batch size two_dim"]]:
    """Causal attention of the tokens after the first `length` of each row, and the cache with theirs added.

    What the cache holds beyond a row's tokens is never seen.

    Args:
      qkv: `[query | key | value]` of the new tokens.
      cache: `[key | value]` of those before.
    """
    batch, time, width = qkv.shape
    query, new = jnp.split(qkv, [width // 3], axis=2)
    cache = append(cache, new, length)
    key, value = jnp.unstack(cache.reshape(batch, cache.shape[1], 2, num_heads, -1), axis=2)
    own = length[:, None] + jnp.arange(time)
    mask = jnp.arange(cache.shape[1]) <= own[:, :, None]
    query = query.reshape(batch, time, num_heads, -1)
    out = jax.nn.dot_product_attention(query, key.astype(query.dtype), value.astype(query.dtype), mask=mask[:, None])
    return out.reshape(batch, time, -1), cache


def next_logits(
    hidden: Float[Array, "batch time dim"], head: Float[Array, "vocab dim"], count: Int[Array, " batch"]
) -> Float[Array, "batch vocab"]:
    """f32 logits of the token that follows the first `count` of each row."""
    last = pool.take(hidden, count - 1)
    head = shard.constrain(head.astype(last.dtype), "vocab", None)
    return jnp.einsum("bd,vd->bv", last, head, preferred_element_type=jnp.float32)
