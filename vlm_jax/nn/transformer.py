"""A stack of pre-norm transformer blocks, scanned or unrolled, with a choice of rematerialisation."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.nn.attention import Mask, SelfAttention
from vlm_jax.nn.functional import Functional, Params
from vlm_jax.nn.initializers import Initializers, initializers
from vlm_jax.nn.layers import layer_norm
from vlm_jax.nn.swiglu import perceptron

REMAT = ("none", "attention", "mlp", "block")

# The residual stream as the two terms of a sum.
Stream = tuple[Float[Array, "batch time dim"], Float[Array, "batch time dim"]]


class Block(nnx.Module):
    """`x + attn(ln1(x))`, then `x + mlp(ln2(x))`, whose last sum is left to the next norm.

    A block takes and gives the residual stream as two terms, `x` and the branch that is still to be added: a sum and
    the norm that follows it read and write memory once.
    """

    def __init__(self, config: Transformer, init: Initializers, *, rngs: nnx.Rngs):
        c = config
        self.ln1 = layer_norm(c.width, epsilon=c.norm_eps, dtype=c.dtype, rngs=rngs)
        self.attn = SelfAttention(
            c.width,
            c.num_heads,
            causal=c.causal,
            bias=c.qkv_bias,
            remat=c.remat == "attention",
            dtype=c.dtype,
            init=init,
            rngs=rngs,
        )
        self.ln2 = layer_norm(c.width, epsilon=c.norm_eps, dtype=c.dtype, rngs=rngs)
        self.mlp = perceptron(
            c.width,
            c.mlp_dim,
            activation=c.activation,
            remat=c.remat in ("mlp", "block"),
            dtype=c.dtype,
            init=init,
            rngs=rngs,
        )
        scaled = c.layer_scale is not None
        self.ls1 = nnx.Param(jnp.full(c.width, c.layer_scale)) if scaled else None
        self.ls2 = nnx.Param(jnp.full(c.width, c.layer_scale)) if scaled else None

    def __call__(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        mask: Mask | None,
    ) -> tuple[Float[Array, "batch time dim"], Float[Array, "batch time dim"]]:
        x, h = self.ln1.add(x, pending)
        by_norm = self.ls1 is None and x.dtype == jnp.bfloat16
        branch = _scaled(self.attn(h, mask, bias_gradient=not by_norm), self.ls1)
        x, h = self.ln2.add(x, branch, self.attn.out.bias[...] if by_norm else None)
        return x, _scaled(self.mlp(h), self.ls2)

    def start(self, rows: int, size: int) -> Array:
        """See `SelfAttention.start`."""
        return self.attn.start(rows, size)

    def extend(
        self,
        x: Float[Array, "batch time dim"],
        pending: Float[Array, "batch time dim"] | None,
        cache: Array,
        length: Int[Array, " batch"],
    ) -> tuple[Stream, Array]:
        """What the block gives for tokens after the first `length`, and the cache with theirs."""
        x, h = self.ln1.add(x, pending)
        attended, cache = self.attn.extend(h, cache, length)
        x, h = self.ln2.add(x, _scaled(attended, self.ls1))
        return (x, _scaled(self.mlp(h), self.ls2)), cache


def _scaled(branch: Float[Array, "batch time dim"], scale: nnx.Param | None) -> Float[Array, "batch time dim"]:
    """A branch times its LayerScale (Touvron et al. 2021, arXiv:2103.17239), whose gradient is summed in f32."""
    return branch if scale is None else (branch * scale[...]).astype(branch.dtype)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """`depth` equal blocks as pure functions over their parameters.

    Unrolled, parameters are `00/attn/qkv/kernel`, `01/...`: the compiler sees every layer and runs faster. Scanned,
    they are one leaf `attn/qkv/kernel` with a leading axis over layers: compilation does not grow with depth. Both
    start from the same numbers.

    `remat` says what the backward pass computes again instead of keeping: "none", "attention" (the [time, time]
    weights of each head), "mlp" (the [time, mlp_dim] hidden activations; on a TPU that is also the fastest) or "block"
    (everything but each block's input).
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    qkv_bias: bool
    causal: bool
    scan: bool
    remat: str
    dtype: str
    init_style: str
    layer_scale: float | None = None

    @functools.cached_property
    def _block(self) -> Functional:
        init = initializers(self.init_style, width=self.width, depth=self.depth)
        return Functional(Block, self, init)

    def init(self, key: Array) -> Params:
        """Parameters of all blocks. One block's initializer is traced once, whatever the depth."""
        stacked = jax.vmap(self._block.init)(jax.random.split(key, self.depth))
        if self.scan:
            return stacked
        return {name: jax.tree.map(operator.itemgetter(i), stacked) for i, name in enumerate(self._names)}

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names under which `apply` can return the output of each block."""
        return tuple(f"blocks/{name}" for name in self._names)

    @property
    def _names(self) -> list[str]:
        return [tree.layer_name(self.depth, i) for i in range(self.depth)]

    def apply(
        self,
        params: Params,
        x: Float[Array, "batch time dim"],
        mask: Mask | None = None,
        *context: Array,
        taps: Sequence[str] = (),
    ) -> tuple[Float[Array, "batch time dim"], dict[str, Float[Array, "batch time dim"]]]:
        """The last block's output, and those of the blocks named in `taps`; see `stream`."""
        stream, outputs = self.stream(params, x, mask, *context, taps=taps)
        return sum(stream), outputs

    def stream(
        self,
        params: Params,
        x: Float[Array, "batch time dim"],
        mask: Mask | None = None,
        *context: Array,
        taps: Sequence[str] = (),
    ) -> tuple[Stream, dict[str, Float[Array, "batch time dim"]]]:
        """The residual stream after the last block, as the two terms of a sum, and the outputs of those in `taps`.

        `mask` is true where a query (axis 1) may see a key (axis 2), or the segments of packed sequences. `context` is
        what blocks of a subclass take besides. Scanned layers that are tapped keep the output of every block, of which
        the named ones are picked.

        Raises:
          UserError: `params` are those of another number of unrolled blocks.
          ValueError: the same, where they are scanned.
        """
        block = self._block
        if self.remat == "block":
            kept = jax.checkpoint(self._block, prevent_cse=not self.scan)
            # What is kept of a block is its input: one array, not the two terms of it.
            block = lambda params, x, pending, *rest: kept(params, x if pending is None else x + pending, None, *rest)
        outputs = {}
        if self.scan:
            tapped = [i for i, name in enumerate(self.tap_names) if name in taps]

            def layer(stream, params):
                stream = block(params, *stream, mask, *context)
                return stream, sum(stream) if tapped else None

            stream, every = jax.lax.scan(layer, (x, jnp.zeros_like(x)), params, length=self.depth)
            outputs = {self.tap_names[i]: every[i] for i in tapped}
        else:
            if len(params) != self.depth:
                raise UserError(f"the parameters are those of {len(params)} blocks, and the model has {self.depth}.")
            stream = (x, None)
            for name in self.tap_names:
                stream = block(params[name.removeprefix("blocks/")], *stream, mask, *context)
                if name in taps:
                    outputs[name] = sum(stream)
        return stream, outputs

    def start(self, params: Params, rows: int, size: int, *context: Array) -> dict[str, Any]:
        """An empty cache for `extend`, of `rows` sequences with room for `size` tokens each.

        What blocks of a subclass need of their `context` is computed once, and is in it.
        """
        one = lambda params: self._block(params, rows, size, *context, method="start")
        if self.scan:
            return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), jax.lax.map(one, params))
        return {name: one(params[name]) for name in self._names}

    def extend(
        self,
        params: Params,
        x: Float[Array, "batch time dim"],
        cache: dict[str, Any],
        length: Int[Array, " batch"],
        *context: Array,
    ) -> tuple[Stream, dict[str, Any]]:
        """The stream of tokens that come after the first `length` of each row, and the cache with theirs.

        It is what `stream` gives for causal blocks, up to rounding; `context` is what blocks of a subclass take
        besides. The caches of scanned layers are changed where they are: nothing copies a cache for one token.
        """
        block = functools.partial(self._block, method="extend")
        if self.scan:

            def layer(carry, layer):
                (stream, cache), (params, index) = carry, layer
                own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, 1, keepdims=False), cache)
                stream, own = block(params, *stream, own, length, *context)
                put = lambda leaf, part: jax.lax.dynamic_update_index_in_dim(leaf, part, index, 1)
                return (stream, jax.tree.map(put, cache, own)), None

            start = ((x, jnp.zeros_like(x)), cache)
            return jax.lax.scan(layer, start, (params, jnp.arange(self.depth)))[0]
        stream, out = (x, None), {}
        for name in self._names:
            stream, out[name] = block(params[name], *stream, cache[name], length, *context)
        return stream, out
