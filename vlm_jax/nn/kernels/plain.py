"""The formula that every attention kernel stands in for, and what else than a TPU runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Ids of the queries and of the keys: a query sees the keys that have its id.
Ids = tuple[Int[Array, "batch time"], Int[Array, "batch time"]]


def heads(qkv: Float[Array, "batch time three_dim"], num_heads: int) -> list[Float[Array, "batch time heads head_dim"]]:
    """Query, key and value of a fused projection."""
    batch, time, _ = qkv.shape
    return jnp.unstack(qkv.reshape(batch, time, 3, num_heads, -1), axis=2)


def visible(ids: Ids | None, time: int, *, causal: bool, valid: int) -> Bool[Array, "#batch time time"] | None:
    """True where a query (axis 1) sees a key (axis 2); None where every one sees all, or `causal` says it already."""
    seen = None if valid == time else jnp.broadcast_to(jnp.arange(time) < valid, (1, time, time))
    if ids is not None:
        same = ids[0][:, :, None] == ids[1][:, None, :]
        seen = same if seen is None else seen & same
        if causal:
            seen &= jnp.tril(jnp.ones((time, time), bool))
    return seen


def plain_attention(
    qkv: Float[Array, "batch time three_dim"], ids: Ids | None, *, num_heads: int, causal: bool, valid: int
) -> Float[Array, "batch time dim"]:
    """`jax.nn.dot_product_attention`, whose softmax is f32; queries that see no key give zero, not a mean of all."""
    seen = visible(ids, qkv.shape[1], causal=causal, valid=valid)
    mask = None if seen is None else seen[:, None]
    out = jax.nn.dot_product_attention(*heads(qkv, num_heads), mask=mask, is_causal=causal)
    out = out.reshape(*qkv.shape[:2], -1)
    return out if ids is None else jnp.where(seen.any(axis=2)[..., None], out, 0)


def cudnn_attention(
    qkv: Float[Array, "batch time three_dim"], *, num_heads: int, causal: bool, valid: int
) -> Float[Array, "batch time dim"]:
    """The same by cuDNN's flash attention, without ids."""
    batch, time, _ = qkv.shape
    lengths = None if valid == time else jnp.full((batch,), valid, jnp.int32)
    out = jax.nn.dot_product_attention(
        *heads(qkv, num_heads), is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out.reshape(batch, time, -1)


def cudnn_supports(qkv: Array, num_heads: int) -> bool:
    """Whether cuDNN takes these heads on this process's GPU. It raises where it does not, and has no fallback."""
    head_dim = qkv.shape[-1] // 3 // num_heads
    if jax.default_backend() != "gpu" or qkv.dtype not in (jnp.bfloat16, jnp.float16) or head_dim % 8:
        return False
    major, *_ = str(getattr(jax.local_devices()[0], "compute_capability", "0")).split(".")
    return int(major) >= 8 and head_dim <= (256 if int(major) >= 9 else 128)
