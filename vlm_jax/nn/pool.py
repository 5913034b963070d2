"""From tokens to one vector: which token, their mean, or attention with a learned query."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import xavier_uniform
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn import shard
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import layer_norm, linear, repeat
from vlm_jax.nn.mlp import Mlp


def eos_index(text: Int[Array, "batch time"], eos_id: int) -> Int[Array, " batch"]:
    """Index of the first `eos_id` of each text, or of its last token where it has none (it was cut).

    The first one counts, so tokenizers that pad with the end token pool the right one.
    """
    is_eos = text == eos_id
    return jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1), text.shape[1] - 1)


def real_tokens(text: Int[Array, "batch time"], pad_id: int, eos_id: int | None = None) -> Bool[Array, "batch time"]:
    """True where a token is not padding. Where `pad_id` is also `eos_id`, the first one is the text's end, and real."""
    if pad_id != eos_id:
        return text != pad_id
    return jnp.arange(text.shape[1]) <= eos_index(text, eos_id)[:, None]


def take(x: Float[Array, "batch time dim"], index: Int[Array, " batch"]) -> Float[Array, "batch dim"]:
    """The token of each row at `index`."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def mean(x: Float[Array, "batch time dim"], mask: Bool[Array, "batch time"] | None = None) -> Float[Array, "batch dim"]:
    """Mean over tokens, or over those where `mask` is true (zero for a row that has none), summed in f32."""
    if mask is None:
        return x.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    weight = mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return jnp.einsum("btd,bt->bd", x, weight.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


class MapHead(nnx.Module):
    """Multi-head attention pooling: a learned probe attends to the tokens, then a residual MLP.

    The pooling of SigLIP (Zhai et al. 2023; from Lee et al. 2019, "Set Transformer").
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: str,
        norm_eps: float,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.probe = nnx.Param(xavier_uniform()(rngs.params(), (1, width))[0])
        self.q = linear(width, width, axes=("embed", "heads"), init=init.qkv, **options)
        self.kv = linear(width, 2 * width, axes=("rows", "heads"), groups=2, init=init.qkv, **options)
        self.out = linear(width, width, axes=("heads", "embed"), init=init.out, **options)
        self.ln = layer_norm(width, epsilon=norm_eps, **options)
        self.mlp = Mlp(width, mlp_dim, activation=activation, init=init, **options)
        self.num_heads, self.dtype = num_heads, dtype

    def __call__(
        self, x: Float[Array, "batch time dim"], mask: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch dim"]:
        num_heads = shard.part(self.num_heads, "heads", "heads of the attention pooling")
        # The query is computed once, for it is the same for all rows.
        query = repeat(self.q(self.probe[...].astype(self.dtype)[None])[0], len(x), self.dtype)
        arguments = [query, self.kv(x)] + ([] if mask is None else [mask])
        axes = [("batch", "heads"), ("batch", None, "heads"), ("batch", None)][: len(arguments)]
        core = functools.partial(_attend_once, num_heads=num_heads)
        x = self.out(shard.per_shard(core, axes, ("batch", "heads"))(*arguments))
        return x + self.mlp(self.ln(x))


def _attend_once(query, key_value, mask=None, *, num_heads):
    """Attention of one query a row to its tokens; `key_value` is `[key | value]` side by side."""
    batch, time, _ = key_value.shape
    key, value = jnp.unstack(key_value.reshape(batch, time, 2, num_heads, -1), axis=2)
    query = query.reshape(batch, 1, num_heads, -1)
    mask = None if mask is None else mask[:, None, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask).reshape(batch, -1)
