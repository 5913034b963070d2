"""Transformer layers that look at other tokens: causal self-attention among their own, then cross-attention."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.nn.attention import Mask, SelfAttention
from vlm_jax.nn.cross_attention import CrossAttention
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import Initializers, initializers
from vlm_jax.nn.layers import layer_norm
from vlm_jax.nn.swiglu import perceptron
from vlm_jax.nn.transformer import Block, Stream, Transformer


class CrossBlock(nnx.Module):
    """`x + attn(ln1(x), ln_context(context))`, then `x + mlp(ln2(x))`; the stream is that of `Block`."""

    def __init__(self, config: Decoder, init: Initializers, *, rngs: nnx.Rngs):
        c = config
        norm = functools.partial(layer_norm, epsilon=c.norm_eps, dtype=c.dtype, rngs=rngs)
        options = {"dtype": c.dtype, "init": init, "rngs": rngs}
        self.ln1 = norm(c.width)
        self.ln_context = norm(c.context_width)
        self.attn = CrossAttention(c.width, c.context_width, c.num_heads, remat=c.remat == "attention", **options)
        self.ln2 = norm(c.width)
        remat = c.remat in ("mlp", "block")
        self.mlp = perceptron(c.width, c.mlp_dim, activation=c.activation, remat=remat, **options)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"],
        context: Float[Array, "batch context context_dim"],
    ) -> Stream:
        return self.to(x, pending, self.keys_values(context))

    def keys_values(self, context: Float[Array, "batch context context_dim"]) -> Float[Array, "batch context two_dim"]:
        """What the block needs of the context, whatever the tokens are."""
        return self.attn.kv(self.ln_context.of_sum(context, None))

    def to(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"],
        kv: Float[Array, "batch context two_dim"],
    ) -> Stream:
        """The same, of a context whose keys and values are there already."""
        x, h = self.ln1.add(x, pending)
        x, h = self.ln2.add(x, self.attn.to(h, kv))
        return x, self.mlp(h)


class DecoderLayer(nnx.Module):
    """A causal block and a cross-attention block, each with its own perceptron, as open_clip's CoCa has them."""

    def __init__(self, config: Decoder, init: Initializers, *, rngs: nnx.Rngs):
        self.causal = Block(config, init, rngs=rngs)
        self.cross = CrossBlock(config, init, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        mask: Mask | None,
        context: Float[Array, "batch context context_dim"],
    ) -> Stream:
        return self.cross(*self.causal(x, pending, mask), context)

    def start(self, rows: int, size: int, context: Float[Array, "batch context context_dim"]) -> dict[str, Array]:
        """Room for the tokens' keys and values, and those of the context."""
        return {"tokens": self.causal.start(rows, size), "context": self.cross.keys_values(context)}

    def extend(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        cache: dict[str, Array],
        length: Int[Array, " batch"],
    ) -> tuple[Stream, dict[str, Array]]:
        """See `Block.extend`."""
        stream, tokens = self.causal.extend(x, pending, cache["tokens"], length)
        return self.cross.to(*stream, cache["context"]), cache | {"tokens": tokens}


class PlainLayer(nnx.Module):
    """Self-attention, cross-attention and one perceptron, as Vaswani et al. 2017 (arXiv:1706.03762, figure 1) have it.

    The norm of each branch is before it ("pre"), or, as in the paper, after its residual sum ("post"): then the stream
    that the layer gives is normed, and the second of its terms is zero.
    """

    def __init__(self, config: Decoder, init: Initializers, *, rngs: nnx.Rngs):
        c = config
        norm = functools.partial(layer_norm, c.width, epsilon=c.norm_eps, dtype=c.dtype, rngs=rngs)
        options = {"dtype": c.dtype, "init": init, "rngs": rngs}
        attention = options | {"remat": c.remat == "attention"}
        self.ln1, self.ln_cross, self.ln2 = norm(), norm(), norm()
        self.attn = SelfAttention(c.width, c.num_heads, causal=c.causal, bias=c.qkv_bias, **attention)
        self.cross = CrossAttention(c.width, c.context_width, c.num_heads, **attention)
        remat = c.remat in ("mlp", "block")
        self.mlp = perceptron(c.width, c.mlp_dim, activation=c.activation, remat=remat, **options)
        self.post = c.layer == "post"

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        mask: Mask | None,
        context: Float[Array, "batch context context_dim"],
    ) -> Stream:
        x, h = self._begin(x, pending)
        return self._finish(x, self.attn(h, mask), self.cross.kv(context))

    def start(self, rows: int, size: int, context: Float[Array, "batch context context_dim"]) -> dict[str, Array]:
        """See `DecoderLayer.start`."""
        return {"tokens": self.attn.start(rows, size), "context": self.cross.kv(context)}

    def extend(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        cache: dict[str, Array],
        length: Int[Array, " batch"],
    ) -> tuple[Stream, dict[str, Array]]:
        """See `Block.extend`."""
        x, h = self._begin(x, pending)
        attended, tokens = self.attn.extend(h, cache["tokens"], length)
        return self._finish(x, attended, cache["context"]), cache | {"tokens": tokens}

    def _begin(self, x: Array, pending: Array | None) -> Stream:
        return (x, x) if self.post else self.ln1.add(x, pending)

    def _finish(self, x: Array, attended: Array, kv: Array) -> Stream:
        """What comes after self-attention."""
        if self.post:
            x = self.ln1.of_sum(x, attended)
            x = self.ln_cross.of_sum(x, self.cross.to(x, kv))
            return self.ln2.of_sum(x, self.mlp(x)), jnp.zeros_like(x)
        x, h = self.ln_cross.add(x, attended)
        x, h = self.ln2.add(x, self.cross.to(h, kv))
        return x, self.mlp(h)


LAYERS = {"two_mlps": DecoderLayer, "pre": PlainLayer, "post": PlainLayer}


@dataclasses.dataclass(frozen=True)
class Decoder(Transformer):
    """`depth` equal decoder layers; `apply` and `stream` take the context after the mask, `start` after the size.

    Attributes (besides those of `Transformer`):
      context_width: of the context.
      layer: "two_mlps" (CoCa's `DecoderLayer`), or `PlainLayer` with norms "pre" or "post".
    """

    context_width: int = dataclasses.field(kw_only=True)
    layer: str = "two_mlps"

    @functools.cached_property
    def _block(self) -> Functional:
        init = initializers(self.init_style, width=self.width, depth=self.depth)
        return Functional(LAYERS[self.layer], self, init)
