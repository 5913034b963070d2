"""Transformer layers that look at other tokens: causal self-attention among their own, then cross-attention."""

from __future__ import annotations

import dataclasses
import functools

from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.nn.attention import Mask
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


@dataclasses.dataclass(frozen=True)
class Decoder(Transformer):
    """`depth` equal decoder layers; `apply` and `stream` take the context after the mask, `start` after the size."""

    context_width: int = dataclasses.field(kw_only=True)

    @functools.cached_property
    def _block(self) -> Functional:
        init = initializers(self.init_style, width=self.width, depth=self.depth)
        return Functional(DecoderLayer, self, init)
