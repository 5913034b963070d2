"""Multi-head attention with one fused matrix for query, key and value."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn import cache as caches
from vlm_jax.nn import kernels, shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear

# True where a query (axis 1) may see a key (axis 2); or the segment of each token of packed sequences.
Mask = Bool[Array, "batch #time time"] | Int[Array, "batch time"]


def attend(
    qkv: Float[Array, "batch time three_dim"],
    mask: Mask | None = None,
    bias: Float[Array, " three_dim"] | None = None,
    *,
    num_heads: int,
    causal: bool = False,
) -> Float[Array, "batch time dim"]:
    """Scaled dot-product self-attention over the fused projection, softmax in f32.

    It takes the matmul's output as it is, `[query | key | value]` with heads innermost-but-one, so that a kernel can
    stand in for it without a change of layout. `mask` is true where a query (axis 1) may see a key (axis 2); or it is
    the segment of each token, which sees those of its own; 0 is padding, which gives zero.

    In bf16 it is the platform's kernel (`vlm_jax.nn.kernels.attention`), which keeps no [time, time] weights for the
    backward pass, and for segments in any dtype. In f32, and for a mask that differs between queries, it is the plain
    formula, without `bias` (see there).
    """
    if has_kernel(qkv.dtype, mask):
        kernel = functools.partial(kernels.attention, qkv, bias=bias, num_heads=num_heads, causal=causal)
        if mask is None:
            return kernel()
        return kernel(segment_ids=mask) if mask.ndim == 2 else kernel(key_mask=mask[:, 0])
    batch, time, _ = qkv.shape
    query, key, value = jnp.unstack(qkv.reshape(batch, time, 3, num_heads, -1), axis=2)
    mask = None if mask is None else mask[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    return out.reshape(batch, time, -1)


def has_kernel(dtype: jnp.dtype, mask: Mask | None) -> bool:
    """Whether `attend` is a kernel's."""
    if mask is not None and mask.ndim == 2:
        return True
    return dtype == jnp.bfloat16 and (mask is None or mask.shape[1] == 1)


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

    def __call__(
        self, x: Float[Array, "batch time dim"], mask: Mask | None = None, *, bias_gradient: bool = True
    ) -> Float[Array, "batch time dim"]:
        """`bias_gradient=False` where what takes the result gives the output's bias its gradient."""
        core = functools.partial(
            attend, num_heads=shard.part(self.num_heads, "heads", "attention heads"), causal=self.causal
        )
        kernel = has_kernel(self.out.dtype, mask)
        if self.remat and not kernel:
            core = jax.checkpoint(core)
        # Where heads are split over devices, the order of the bias's columns is not that of the product's.
        bias = self.qkv.bias[...] if kernel and self.qkv.bias is not None and shard.ways("heads") == 1 else None
        tokens = ("batch", None, "heads")
        operands = {"qkv": (self.qkv(x, bias_gradient=bias is None), tokens)}
        if mask is not None:
            operands["mask"] = mask, ("batch", *[None] * (mask.ndim - 1))
        if bias is not None:
            operands["bias"] = bias, (None,)
        arrays, axes = zip(*operands.values())
        by_name = lambda *arrays: core(**dict(zip(operands, arrays)))
        checked = x.shape[1] < kernels.SPLASH_FROM
        return self.out(shard.per_shard(by_name, axes, tokens, checked=checked)(*arrays), bias_gradient=bias_gradient)

    def start(self, rows: int, size: int) -> Float[Array, "rows size two_dim"]:
        """An empty cache of `rows` sequences with room for `size` tokens each; see `nn.cache`."""
        empty = jnp.zeros((rows, size, 2 * self.out.kernel.shape[0]), self.out.dtype)
        return shard.constrain(empty, "batch", None, "heads")

    def extend(
        self, x: Float[Array, "batch time dim"], cache: Float[Array, "batch size two_dim"], length: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time dim"], Float[Array, "batch size two_dim"]]:
        """What causal attention gives for the tokens after the first `length`, and the cache with theirs."""
        num_heads = shard.part(self.num_heads, "heads", "attention heads")
        core = functools.partial(caches.attend_after, num_heads=num_heads)
        tokens = ("batch", None, "heads")
        out, cache = shard.per_shard(core, [tokens, tokens, ("batch",)], [tokens, tokens])(self.qkv(x), cache, length)
        return self.out(out), cache
