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
from vlm_jax.nn.layers import layer_norm, linear, to_use
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


def members(segment_ids: Int[Array, "batch time"], count: int) -> Bool[Array, "batch count time"]:
    """True where a token belongs to segment 1, ..., `count`."""
    return segment_ids[:, None] == jnp.arange(1, count + 1)[:, None]


def segment_means(
    x: Float[Array, "batch time dim"], segment_ids: Int[Array, "batch time"], count: int
) -> Float[Array, "batch count dim"]:
    """`mean` of each segment 1, ..., `count` of packed sequences; zero for one that is not there."""
    belongs = members(segment_ids, count)
    weight = (belongs / jnp.maximum(belongs.sum(axis=2, keepdims=True), 1)).astype(x.dtype)
    return jnp.einsum("btd,bnt->bnd", x, weight, preferred_element_type=jnp.float32).astype(x.dtype)


def segment_ends(
    x: Float[Array, "batch time dim"], segment_ids: Int[Array, "batch time"], count: int
) -> Float[Array, "batch count dim"]:
    """The last token of each segment 1, ..., `count` of packed sequences; of one that is not there, the row's first."""
    last = jnp.max(jnp.where(members(segment_ids, count), jnp.arange(x.shape[1]), 0), axis=2)
    return jnp.take_along_axis(x, last[:, :, None], axis=1)


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
        query = self.q(self.probe[...].astype(self.dtype)[None])
        kernel = to_use(self.kv.kernel[...], self.kv.axes, self.kv.groups)
        bias = to_use(self.kv.bias[...][None], (None, self.kv.axes[1]), self.kv.groups)
        arguments = [x, query, kernel, bias] + ([] if mask is None else [mask])
        axes = [("batch", None, None), *[(None, "heads")] * 3, ("batch", None)][: len(arguments)]
        core = functools.partial(_attend_once, num_heads=num_heads)
        x = self.out(shard.per_shard(core, axes, ("batch", "heads"))(*arguments))
        return x + self.mlp(self.ln(x))

    def segments(
        self, x: Float[Array, "batch time dim"], segment_ids: Int[Array, "batch time"], count: int
    ) -> Float[Array, "batch count dim"]:
        """One vector for each segment 1, ..., `count` of packed sequences; one that is not there gives any vector."""
        num_heads = shard.part(self.num_heads, "heads", "heads of the attention pooling")
        query = self.q(self.probe[...].astype(self.dtype)[None])
        kernel = to_use(self.kv.kernel[...], self.kv.axes, self.kv.groups)
        bias = to_use(self.kv.bias[...][None], (None, self.kv.axes[1]), self.kv.groups)
        axes = [("batch", None, None), *[(None, "heads")] * 3, ("batch", None)]
        core = functools.partial(_attend_once_each, num_heads=num_heads, count=count)
        pooled = shard.per_shard(core, axes, ("batch", None, "heads"))(x, query, kernel, bias, segment_ids)
        x = self.out(pooled)
        return x + self.mlp(self.ln(x))


def _attend_once(
    x: Float[Array, "batch time dim"],
    query: Float[Array, "1 out"],
    kernel: Float[Array, "dim two_out"],
    bias: Float[Array, "1 two_out"],
    mask: Bool[Array, "batch time"] | None = None,
    *,
    num_heads: int,
) -> Float[Array, "batch out"]:
    """Attention of one query to the tokens of each row, whose keys and values are `x kernel + bias`.

    With one query for all there is no need of keys and values: q (x K) = x (K q), and p (x V) = (p x) V. That saves
    the largest product, and taking heads apart for every token. The keys' bias adds the same to all logits of a head,
    so it cancels.
    """
    batch, _, dim = x.shape
    keys, values = jnp.unstack(kernel.astype(x.dtype).reshape(dim, 2, num_heads, -1), axis=1)
    query = query.reshape(num_heads, -1) * query.dtype.type(keys.shape[-1] ** -0.5)
    f32 = {"preferred_element_type": jnp.float32}
    toward = jnp.einsum("dhe,he->dh", keys, query, **f32).astype(x.dtype)
    logits = jnp.einsum("btd,dh->bth", x, toward, **f32).swapaxes(1, 2)  # "bht" of bf16 is nothing that a CPU computes
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(x.dtype)
    pooled = jnp.einsum("bht,btd->bhd", weights, x, **f32).astype(x.dtype)
    out = jnp.einsum("bhd,dhe->bhe", pooled, values, **f32)
    return out.reshape(batch, -1).astype(x.dtype) + jnp.split(bias, 2, axis=1)[1].astype(x.dtype)


def _attend_once_each(
    x: Float[Array, "batch time dim"],
    query: Float[Array, "1 out"],
    kernel: Float[Array, "dim two_out"],
    bias: Float[Array, "1 two_out"],
    segment_ids: Int[Array, "batch time"],
    *,
    num_heads: int,
    count: int,
) -> Float[Array, "batch count out"]:
    """As `_attend_once`, within each segment of each row: the logits are one product, and softmaxes are by segment."""
    batch, _, dim = x.shape
    keys, values = jnp.unstack(kernel.astype(x.dtype).reshape(dim, 2, num_heads, -1), axis=1)
    query = query.reshape(num_heads, -1) * query.dtype.type(keys.shape[-1] ** -0.5)
    f32 = {"preferred_element_type": jnp.float32}
    toward = jnp.einsum("dhe,he->dh", keys, query, **f32).astype(x.dtype)
    logits = jnp.einsum("btd,dh->bth", x, toward, **f32).swapaxes(1, 2)[:, :, None]
    logits = jnp.where(members(segment_ids, count)[:, None], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(x.dtype)
    pooled = jnp.einsum("bhnt,btd->bhnd", weights, x, **f32).astype(x.dtype)
    out = jnp.einsum("bhnd,dhe->bnhe", pooled, values, **f32)
    return out.reshape(batch, count, -1).astype(x.dtype) + jnp.split(bias, 2, axis=1)[1].astype(x.dtype)
