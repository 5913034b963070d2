"""Blocks of a decoder-only language model: grouped-query attention with rotary positions, and its cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax import tree
from vlm_jax.nn import kernels, shard
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import Initializers, initializers
from vlm_jax.nn.layers import layer_norm, linear, rms_norm
from vlm_jax.nn.rotary import rotate
from vlm_jax.nn.swiglu import SWIGLU, perceptron
from vlm_jax.nn.transformer import Stream, Transformer

NORMS = {"rms": rms_norm, "layer": layer_norm}
PER_HEAD = "layer_per_head"
QK_NORMS = (*NORMS, PER_HEAD)
PLACEMENTS = ("pre", "swin")
TOKENS, HEADS, OF_HEADS = ("batch", None, "heads"), ("batch", None, "heads", None), ("heads", None)

# Of a layer: keys and values of every place, `k` and `v` [batch, places, kv_heads, head_dim].
LayerCache = dict[str, Float[Array, "batch places kv_heads head_dim"]]


class HeadNorm(nnx.Module):
    """Scale and bias [heads, head_dim] of a LayerNorm over each head's features, which every head has of its own.

    Chameleon's (2024, arXiv:2405.09818, section 2.3), as its published weights have it. They are arguments of what runs
    on each device's heads, since these are split over `tensor`.
    """

    def __init__(self, heads: int, head_dim: int):
        self.scale = nnx.Param(jnp.ones((heads, head_dim)))
        self.bias = nnx.Param(jnp.zeros((heads, head_dim)))


def qk_norm(kind: str | None, head_dim: int, heads: int, **options: Any) -> HeadNorm | nnx.Module | None:
    """The norm of the queries or keys of so many heads; None for none."""
    if kind is None or kind == PER_HEAD:
        return None if kind is None else HeadNorm(heads, head_dim)
    return NORMS[kind](head_dim, **options)


def norm_heads(
    x: Float[Array, "batch time heads head_dim"],
    scale: Float[Array, "heads head_dim"],
    bias: Float[Array, "heads head_dim"],
    epsilon: float,
) -> Float[Array, "batch time heads head_dim"]:
    """`x` with mean 0 and variance 1 in each head of each token, by statistics in f32, scaled and moved."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(axis=-1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return (wide * scale + bias).astype(x.dtype)


class CausalAttention(nnx.Module):
    """Attention of each token to those before it in its segment, with rotary positions.

    Query heads in line share a head of keys and values where there are fewer of these. `qk_norm` norms each head's
    query and key before they turn (Dehghani et al. 2023, arXiv:2302.05442, section 2), with parameters that all heads
    share, or those of `HeadNorm`.
    """

    def __init__(self, config: CausalTransformer, init: Initializers, *, rngs: nnx.Rngs):
        c = config
        options = {"dtype": c.dtype, "rngs": rngs}
        inner, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.q = linear(c.width, inner, bias=c.qkv_bias, axes=("embed", "heads"), init=init.qkv, **options)
        self.kv = linear(c.width, 2 * keys, bias=c.qkv_bias, axes=("rows", "heads"), groups=2, init=init.qkv, **options)
        self.out = linear(inner, c.width, bias=c.bias, axes=("heads", "embed"), init=init.out, **options)
        norm = functools.partial(qk_norm, c.qk_norm, c.head_dim, epsilon=c.norm_eps, **options)
        self.q_norm, self.k_norm = norm(c.num_heads), norm(c.num_kv_heads)
        self.config = c

    def __call__(
        self,
        q: Float[Array, "batch time heads_dim"],
        kv: Float[Array, "batch time two_kv_heads_dim"],
        positions: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        prefix: Bool[Array, "batch time"] | None,
    ) -> Float[Array, "batch time heads_dim"]:
        """From what the layers `q` and `kv` give to what `out` takes; each token goes through these by itself."""
        c, norms = self.config, self._norms

        def core(q, kv, positions, segment_ids, *rest):
            query, key, value = self._heads(q, kv, positions, rest[: len(norms)])
            if prefix is None:
                out = kernels.causal_attention(query, key, value, segment_ids)
            else:
                mask = kernels.seen_by(segment_ids, rest[-1])[:, None]
                out = jax.nn.dot_product_attention(query, key, value, mask=mask)
            return out.reshape(*q.shape[:2], -1)

        core = jax.checkpoint(core) if c.remat == "attention" else core
        tokens = [("batch", None)]
        arguments, axes = (
            [q, kv, positions, segment_ids, *norms],
            [TOKENS, TOKENS, *tokens * 2, *[OF_HEADS] * len(norms)],
        )
        if prefix is not None:
            arguments, axes = [*arguments, prefix], axes + tokens
        return shard.per_shard(core, axes, TOKENS, checked=False)(*arguments)

    def extend(
        self,
        q: Float[Array, "batch time heads_dim"],
        kv: Float[Array, "batch time two_kv_heads_dim"],
        positions: Int[Array, "batch time"],
        cache: LayerCache,
    ) -> tuple[Float[Array, "batch time heads_dim"], LayerCache]:
        """The same for tokens after those of a cache, whose places `positions` they take."""
        norms = self._norms

        def core(q, kv, positions, k, v, *norms):
            query, key, value = self._heads(q, kv, positions, norms)
            row = jnp.arange(len(q))[:, None]
            k, v = k.at[row, positions].set(key), v.at[row, positions].set(value)
            seen = jnp.arange(k.shape[1]) <= positions[..., None]
            out = jax.nn.dot_product_attention(query, k, v, mask=seen[:, None])
            return out.reshape(*q.shape[:2], -1), k, v

        axes = [TOKENS, TOKENS, ("batch", None), HEADS, HEADS, *[OF_HEADS] * len(norms)]
        run = shard.per_shard(core, axes, (TOKENS, HEADS, HEADS))
        out, k, v = run(q, kv, positions, cache["k"], cache["v"], *norms)
        return out, {"k": k, "v": v}

    @property
    def _norms(self) -> tuple[Float[Array, "heads head_dim"], ...]:
        """Scale and bias of queries and of keys, where every head has its own."""
        if self.config.qk_norm != PER_HEAD:
            return ()
        return tuple(part[...] for norm in (self.q_norm, self.k_norm) for part in (norm.scale, norm.bias))

    def _heads(self, q: Array, kv: Array, positions: Array, norms: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Query, key and value of a device's heads, normed and turned."""
        c = self.config
        batch, time, _ = q.shape
        query = q.reshape(batch, time, -1, c.head_dim)
        key, value = jnp.unstack(kv.reshape(batch, time, 2, -1, c.head_dim), axis=2)
        if norms:
            query, key = norm_heads(query, *norms[:2], c.norm_eps), norm_heads(key, *norms[2:], c.norm_eps)
        elif self.q_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        turn = functools.partial(rotate, positions=positions, theta=c.rope_theta, fraction=c.rotary)
        return turn(query), turn(key), value


class CausalBlock(nnx.Module):
    """`x + attn(ln1(x))`, then `x + mlp(ln2(x))`; the stream is that of `transformer.Block`.

    With `placement="swin"` the norms are after what they were before, `x + ln1(attn(x))` and `x + ln2(mlp(x))` (Liu et
    al. 2021, arXiv:2111.09883, section 3.2; so has Chameleon's largest model it).

    With two modalities the block has itself once more for tokens of images, under `image`: their norms, matrices and
    perceptron (Diao et al. 2025, arXiv:2502.06788, section 3). All tokens attend to one another as ever. Both are
    computed for all tokens and chosen from, as in the published code: twice the products of a plain block, but static
    shapes whatever a row mixes, and no token moves between devices. Without an `image`, as for tokens that are written,
    only the text's are computed.
    """

    def __init__(self, config: CausalTransformer, init: Initializers, *, rngs: nnx.Rngs):
        c = config
        norm = functools.partial(NORMS[c.norm], c.width, epsilon=c.norm_eps, dtype=c.dtype, rngs=rngs)
        self.ln1, self.ln2 = norm(), norm()
        self.attn = CausalAttention(c, init, rngs=rngs)
        options = {"activation": c.activation, "remat": c.remat in ("mlp", "block")}
        options |= {"bias": c.bias} if c.activation == SWIGLU else {}
        self.mlp = perceptron(c.width, c.mlp_dim, **options, dtype=c.dtype, init=init, rngs=rngs)
        self.swin = c.placement == "swin"
        alone = dataclasses.replace(c, modalities=1)
        self.image = CausalBlock(alone, init, rngs=rngs) if c.modalities == 2 else None

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        prefix: Bool[Array, "batch time"] | None = None,
        image: Bool[Array, "batch time"] | None = None,
    ) -> Stream:
        x, q, kv = self.before(x, pending, image)
        return self.after(x, self.attn(q, kv, positions, segment_ids, prefix), image)

    def extend(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        cache: LayerCache,
        length: Int[Array, " batch"],
        image: Bool[Array, "batch time"] | None = None,
    ) -> tuple[Stream, LayerCache]:
        """The same for tokens after the first `length` of each row, and the cache with theirs."""
        x, q, kv = self.before(x, pending, image)
        attended, cache = self.attn.extend(q, kv, length[:, None] + jnp.arange(x.shape[1]), cache)
        return self.after(x, attended, image), cache

    def before(self, x: Array, pending: Array | None, image: Array | None) -> tuple[Array, Array, Array]:
        """The sum of the stream, and query, key and value of each token."""
        if self.swin:
            added = h = x if pending is None else x + pending
        else:
            added, h = self.ln1.add(x, pending)
        found = added, self.attn.q(h), self.attn.kv(h)
        return found if image is None else _choose(image, self.image.before(x, pending, None), found)

    def after(self, x: Array, attended: Array, image: Array | None) -> Stream:
        """The stream behind the block, of what each token's heads have gathered."""
        if self.swin:
            added = x + self.ln1.of_sum(self.attn.out(attended), None)
            found = added, self.ln2.of_sum(self.mlp(added), None)
        else:
            added, h = self.ln2.add(x, self.attn.out(attended))
            found = added, self.mlp(h)
        return found if image is None else _choose(image, self.image.after(x, attended, None), found)


def _choose(image: Bool[Array, "batch time"], those: tuple[Array, ...], others: tuple[Array, ...]) -> tuple[Array, ...]:
    """`those` of the tokens of images, `others` of the rest."""
    return tuple(jnp.where(image[..., None], a, b) for a, b in zip(those, others))


@dataclasses.dataclass(frozen=True)
class CausalTransformer(Transformer):
    """`depth` equal blocks of a decoder. `apply` and `stream` take segments as their mask, then positions, prefix and
    image; `extend` takes image.

    Attributes (besides those of `Transformer`):
      num_kv_heads, head_dim: heads of keys and values, and the width of each head.
      norm, qk_norm: "rms" or "layer"; of queries and keys None for none, or "layer_per_head", see `HeadNorm`.
      placement: of the norms, "pre" or "swin"; see `CausalBlock`.
      bias: of the output projection and the perceptron.
      rope_theta, rotary: see `rotary.rotate`.
      modalities: see `CausalBlock`.
    """

    num_kv_heads: int = dataclasses.field(kw_only=True)
    head_dim: int = dataclasses.field(kw_only=True)
    norm: str = "rms"
    qk_norm: str | None = None
    placement: str = "pre"
    bias: bool = False
    rope_theta: float = 10_000.0
    rotary: float = 1.0
    modalities: int = 1

    @functools.cached_property
    def _block(self) -> Functional:
        return Functional(CausalBlock, self, initializers(self.init_style, width=self.width, depth=self.depth))

    def cache(self, batch: int, places: int) -> dict[str, Any]:
        """An empty cache: leaves have the batch in front; those of scanned layers have the layers behind it."""
        shape = (batch, places, self.num_kv_heads, self.head_dim)
        if self.scan:
            shape = (batch, self.depth, *shape[1:])
        layer = {name: jnp.zeros(shape, jnp.dtype(self.dtype)) for name in ("k", "v")}
        return layer if self.scan else {tree.layer_name(self.depth, i): layer for i in range(self.depth)}
