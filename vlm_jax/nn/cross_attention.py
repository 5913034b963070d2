"""Attention to tokens of another kind: a decoder's to an image, and learned queries' to all tokens (pooling)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float

from vlm_jax.nn import shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import layer_norm, linear

Query = Float[Array, "batch time dim"] | Float[Array, "time dim"]


def cross_attend(
    query: Query, kv: Float[Array, "batch context two_dim"], *, num_heads: int
) -> Float[Array, "batch time dim"]:
    """Scaled dot-product attention to fused `[keys | values]`, softmax in f32.

    Queries without a batch are the same for every row, and are not repeated for it.
    """
    query = query.reshape(*query.shape[:-1], num_heads, -1)
    key, value = jnp.unstack(kv.reshape(*kv.shape[:2], 2, num_heads, -1), axis=2)
    f32 = {"preferred_element_type": jnp.float32}
    of_query = "bthe" if query.ndim == 4 else "the"
    logits = jnp.einsum(f"{of_query},bshe->bhts", query, key, **f32) * key.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits).astype(value.dtype)
    out = jnp.einsum("bhts,bshe->bthe", weights, value, **f32).astype(value.dtype)
    return out.reshape(*out.shape[:2], -1)


class CrossAttention(nnx.Module):
    """Queries of `width`, keys and values of a context of `context_width`, an output projection.

    `remat` recomputes the [time, context] weights in the backward pass; in bf16 that is always so, as it is in
    self-attention.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        num_heads: int,
        *,
        remat: bool,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.q = linear(width, width, axes=("embed", "heads"), init=init.qkv, **options)
        self.kv = linear(context_width, 2 * width, axes=("rows", "heads"), groups=2, init=init.qkv, **options)
        self.out = linear(width, width, axes=("heads", "embed"), init=init.out, **options)
        self.num_heads, self.remat = num_heads, remat or dtype == "bfloat16"

    def __call__(
        self, x: Float[Array, "batch time dim"], context: Float[Array, "batch context context_dim"]
    ) -> Float[Array, "batch time dim"]:
        return self.to(x, self.kv(context))

    def to(
        self, x: Float[Array, "batch time dim"], kv: Float[Array, "batch context two_dim"]
    ) -> Float[Array, "batch time dim"]:
        """The same, of a context whose keys and values are there already."""
        return self._attend(self.q(x), ("batch", None, "heads"), kv)

    def of_queries(
        self, queries: Float[Array, "time dim"], context: Float[Array, "batch context context_dim"]
    ) -> Float[Array, "batch time dim"]:
        """The same for queries that all rows share."""
        queries = self.q(queries[None, None])[0, 0]  # a batch of one, which no device takes a part of
        return self._attend(queries, (None, "heads"), self.kv(context))

    def _attend(self, query: Query, axes: Sequence[str | None], kv: Array) -> Float[Array, "batch time dim"]:
        num_heads = shard.part(self.num_heads, "heads", "heads of the cross-attention")
        core = functools.partial(cross_attend, num_heads=num_heads)
        core = jax.checkpoint(core) if self.remat else core
        tokens = ("batch", None, "heads")
        return self.out(shard.per_shard(core, [axes, tokens], tokens)(query, kv))


class AttentionalPooler(nnx.Module):
    """Learned queries attend to the tokens of each row (CoCa: Yu et al. 2022, arXiv:2205.01917, section 3.2)."""

    def __init__(
        self,
        width: int,
        context_width: int,
        num_heads: int,
        queries: int,
        *,
        norm_eps: float,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        self.query = nnx.Param(normal(1.0)(rngs.params(), (queries, width)))
        self.ln_q = layer_norm(width, epsilon=norm_eps, dtype=dtype, rngs=rngs)
        self.ln_k = layer_norm(context_width, epsilon=norm_eps, dtype=dtype, rngs=rngs)
        self.attn = CrossAttention(width, context_width, num_heads, remat=False, dtype=dtype, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time context_dim"]) -> Float[Array, "batch queries dim"]:
        return self.attn.of_queries(self.ln_q(self.query[...]), self.ln_k.of_sum(x, None))
