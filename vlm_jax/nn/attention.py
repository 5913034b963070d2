"""Multi-head attention with one fused matrix for query, key and value."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear


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
    """
    batch, time, _ = qkv.shape
    query, key, value = jnp.unstack(qkv.reshape(batch, time, 3, num_heads, -1), axis=2)
    if mask is not None:
        mask = mask[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    return out.reshape(batch, time, -1)


class SelfAttention(nnx.Module):
    """Self-attention with an output projection. `remat` recomputes the [time, time] weights in the backward pass."""

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
        self.qkv = linear(width, 3 * width, bias=bias, init=init.qkv, dtype=dtype, rngs=rngs)
        self.out = linear(width, width, init=init.out, dtype=dtype, rngs=rngs)
        self.num_heads, self.causal, self.remat = num_heads, causal, remat

    def __call__(
        self, x: Float[Array, "batch time dim"], mask: Bool[Array, "batch #time time"] | None = None
    ) -> Float[Array, "batch time dim"]:
        core = functools.partial(attend, num_heads=self.num_heads, causal=self.causal)
        if self.remat:
            core = jax.checkpoint(core)
        return self.out(core(self.qkv(x), mask))
