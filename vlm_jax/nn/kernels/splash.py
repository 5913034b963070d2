"""Self-attention of sequences that are too long for one grid step, by JAX's splash attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Float

from vlm_jax.nn.kernels.plain import Ids, heads, visible

MULTIPLE = 128
BLOCK = 512
PADDING = -2  # no id of a key


def long_attention(
    qkv: Float[Array, "batch time three_dim"],
    ids: Ids | None,
    *,
    num_heads: int,
    causal: bool,
    valid: int,
    interpret: bool = False,
) -> Float[Array, "batch time dim"]:
    """As `plain_attention`. Time is padded to a multiple of 128, and ids keep the padding from being seen."""
    batch, time, _ = qkv.shape
    padded = -(-time // MULTIPLE) * MULTIPLE
    if ids is None:
        ids = (jnp.ones((batch, time), jnp.int32),) * 2
    query_ids, key_ids = ids
    key_ids = jnp.where(jnp.arange(time) < valid, key_ids, PADDING)
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padded - time)), constant_values=PADDING - 1)
    segments = splash_attention.SegmentIds(pad(query_ids), pad(key_ids))

    query, key, value = (
        jnp.pad(x, ((0, 0), (0, padded - time), (0, 0), (0, 0))).swapaxes(1, 2) for x in heads(qkv, num_heads)
    )
    out = jax.vmap(_kernel(num_heads, padded, causal, interpret))(query * query.shape[-1] ** -0.5, key, value, segments)
    out = out.swapaxes(1, 2)[:, :time].reshape(batch, time, -1)
    seen = visible(ids, time, causal=causal, valid=valid)
    return jnp.where(seen.any(axis=2)[..., None], out, 0)


def _kernel(num_heads: int, time: int, causal: bool, interpret: bool):
    mask = (splash_attention.CausalMask if causal else splash_attention.FullMask)((time, time))
    return splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads), block_sizes=block_sizes(time), interpret=interpret
    )


def block_sizes(time: int) -> splash_attention.BlockSizes:
    """The largest blocks that divide a time, which is a multiple of 128."""
    block = max(n for n in range(MULTIPLE, BLOCK + 1, MULTIPLE) if time % n == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    return splash_attention.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block))
