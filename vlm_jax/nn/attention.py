"""Multi-head attention with one fused matrix for query, key and value."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn import kernels, shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear

# True where a query (axis 1) may see a key (axis 2); or the segment of each token of packed sequences.
Mask = Bool[Array, "batch #time time"] | Int[Array, "batch time"]


def attend(
    qkv: Float[Array, "batch time three_dim"],
    mask: Bool[Array, "batch #time time"] | None = None,
    *,
    num_heads: int,
    causal: bool = False,
) -> Float[Array, "batch time dim"]:
    """Scaled dot-product self-attention over the fused projection, softmax in f32.

    It takes the matmul's output as it is, `[query | key | value]` with heads innermost-but-one, so that a kernel can
    stand in for it without a change of layout. `mask` is true where a query (axis 1) may see a key (axis 2).

    In bf16 it is the platform's kernel (`vlm_jax.nn.kernels.attention`), which keeps no [time, time] weights for the
    backward pass. In f32, and for a mask that differs between queries, it is the plain formula.
    """
    if qkv.dtype == jnp.bfloat16 and (mask is None or mask.shape[1] == 1):
        seen = None if mask is None else mask[:, 0]
        return kernels.attention(qkv, key_mask=seen, num_heads=num_heads, causal=causal)
    batch, time, _ = qkv.shape
    query, key, value = jnp.unstack(qkv.reshape(batch, time, 3, num_heads, -1), axis=2)
    mask = None if mask is None else mask[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    return out.reshape(batch, time, -1)


def attend_within(
    qkv: Float[Array, "batch time three_dim"],
    segment_ids: Int[Array, "batch time"],
    *,
    num_heads: int,
    causal: bool = False,
) -> Float[Array, "batch time dim"]:
    """As `attend`, of packed sequences: a token sees those of its own segment; 0 is padding, which gives zero.

    It is `vlm_jax.nn.kernels.attention` in any dtype, so that no [time, time] mask is kept or passed on.
    """
    return kernels.attention(qkv, segment_ids=segment_ids, num_heads=num_heads, causal=causal)


class SelfAttention(nnx.Module):
    """Self-attention with an output projection.

    `remat` recomputes the [time, time] weights in the backward pass; bf16's kernels do that of themselves.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        bias: bool,
        remat: bool,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.qkv = linear(width, 3 * width, bias=bias, axes=("rows", "heads"), groups=3, init=init.qkv, **options)
        self.out = linear(width, width, axes=("heads", "embed"), init=init.out, **options)
        self.num_heads, self.causal, self.remat = num_heads, causal, remat

    def __call__(self, x: Float[Array, "batch time dim"], mask: Mask | None = None) -> Float[Array, "batch time dim"]:
        num_heads = shard.part(self.num_heads, "heads", "attention heads")
        core = functools.partial(attend, num_heads=num_heads, causal=self.causal)
        if self.remat and self.out.dtype != jnp.bfloat16:
            core = jax.checkpoint(core)
        fused, seen = ("batch", None, "heads"), ("batch", None, None)
        if mask is not None and mask.ndim == 2:
            within = functools.partial(attend_within, num_heads=num_heads, causal=self.causal)
            return self.out(shard.per_shard(within, [fused, ("batch", None)], fused)(self.qkv(x), mask))
        if mask is None:
            out = shard.per_shard(lambda qkv: core(qkv, None), [fused], fused)(self.qkv(x))
        else:
            out = shard.per_shard(core, [fused, seen], fused)(self.qkv(x), mask)
        return self.out(out)
