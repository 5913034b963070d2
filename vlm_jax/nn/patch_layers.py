"""EVE's layers: what makes tokens of patches, and what aligns them with an encoder (Diao et al. 2024, arXiv:2406.11832,
sections 3.1 and 3.2); and what makes tokens in EVEv2 (Diao et al. 2025, arXiv:2502.06788, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.initializers import Initializers, initializers
from vlm_jax.nn.layers import layer_norm, linear
from vlm_jax.nn.mlp import Projector

EPSILON = 1e-5


def attend_few(
    query: Float[Array, "*batch dim"],
    key: Float[Array, "*batch few dim"],
    value: Float[Array, "*batch few dim"],
    num_heads: int,
    mask: Bool[Array, "*batch few"] | None = None,
) -> Float[Array, "*batch dim"]:
    """Attention of one query to a few keys, softmax in f32; logits are divided by the root of the whole width."""
    heads = lambda x: x.reshape(*x.shape[:-1], num_heads, -1)
    logits = jnp.einsum("...he,...fhe->...hf", heads(query), heads(key), preferred_element_type=jnp.float32)
    logits *= query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[..., None, :], logits, -1e30)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    out = jnp.einsum("...hf,...fhe->...he", weights, heads(value))
    return out.reshape(query.shape)


class FewAttention(nnx.Module):
    """`query + proj(attention)`, with a norm before each of the matrices of query, key and value."""

    def __init__(self, width: int, num_heads: int, *, dtype: str, init: Initializers, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.ln_q = layer_norm(width, epsilon=EPSILON, **options)
        self.ln_kv = layer_norm(width, epsilon=EPSILON, **options)
        self.q = linear(width, width, bias=False, init=init.qkv, **options)
        self.kv = linear(width, 2 * width, bias=False, init=init.qkv, **options)
        self.out = linear(width, width, init=init.out, **options)
        self.num_heads = num_heads

    def keys_values(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch two_dim"]:
        return self.kv(self.ln_kv.of_sum(x, None))

    def __call__(
        self, x: Float[Array, "*batch dim"], kv: Float[Array, "*batch few two_dim"], mask: Array | None = None
    ) -> Float[Array, "*batch dim"]:
        query = self.q(self.ln_q.of_sum(x, None))
        return x + self.out(attend_few(query, *jnp.split(kv, 2, axis=-1), self.num_heads, mask))


class PatchEmbedding(nnx.Module):
    """The patch embedding layer: patches by one matrix, neighbours pooled by attention, a CLS token for each image.

    Each vector is the mean of `merge` x `merge` patches, which then attends to these; CLS attends to all vectors of its
    image; and a learned split token stands at each row's end. All of them go through a two-layer perceptron.
    """

    def __init__(
        self, patch_dim: int, width: int, out_dim: int, num_heads: int, merge: int, *, dtype: str, rngs: nnx.Rngs
    ):
        init, options = initializers("jax", width=width, depth=1), {"dtype": dtype, "rngs": rngs}
        self.patch = linear(patch_dim, width, bias=False, init=init.head, **options)
        self.local = FewAttention(width, num_heads, init=init, **options)
        self.all = FewAttention(width, num_heads, init=init, **options)
        self.cls = nnx.Param(normal(1.0)(rngs.params(), (width,)))
        self.split = nnx.Param(normal(1.0)(rngs.params(), (width,)))
        self.mlp = Projector(width, out_dim, init=init, **options)
        self.merge, self.dtype = merge, dtype

    def __call__(
        self, patches: Float[Array, "batch time patch"], grids: Int[Array, "batch images 2"]
    ) -> Float[Array, "batch vectors dim"]:
        """The pooled vectors of all images in order, row by row, as many as there is room for; then CLS of each; then
        the split token.

        Args:
          patches: of a row's images in order, each row by row.
          grids: rows and columns of each, multiples of `merge`; 0 for images that are not there.
        """
        x = self.patch(patches.astype(self.dtype))
        batch, time, _ = x.shape
        member, image = members(grids, time // self.merge**2, self.merge)
        # Each patch is a member once: its key and value are made before it is put beside the others.
        pooled = self.local(beside(x, member).mean(axis=2), beside(self.local.keys_values(x), member))
        own = image[:, None, :] == 1 + jnp.arange(grids.shape[1])[:, None]
        kv = self.all.keys_values(pooled)
        kv = jnp.broadcast_to(kv[:, None], (batch, grids.shape[1], *kv.shape[1:]))
        cls = jnp.broadcast_to(self.cls[...].astype(self.dtype), (batch, grids.shape[1], x.shape[-1]))
        cls = self.all(cls, kv, own)
        split = jnp.broadcast_to(self.split[...].astype(self.dtype), (batch, 1, x.shape[-1]))
        return self.mlp(jnp.concatenate([pooled, cls, split], axis=1))


class PatchConvolutions(nnx.Module):
    """EVEv2's patch embedding: a convolution, GELU, and another over `merge` x `merge` of what it gives.

    Strides are sizes, so that both are matrices. CLS and the split token are learned vectors of the decoder's width.
    """

    def __init__(self, patch_dim: int, width: int, out_dim: int, merge: int, *, dtype: str, rngs: nnx.Rngs):
        init, options = initializers("jax", width=width, depth=1), {"dtype": dtype, "rngs": rngs}
        self.conv1 = linear(patch_dim, width, init=init.head, **options)
        self.conv2 = linear(merge**2 * width, out_dim, init=init.head, **options)
        self.cls = nnx.Param(normal(1.0)(rngs.params(), (out_dim,)))
        self.split = nnx.Param(normal(1.0)(rngs.params(), (out_dim,)))
        self.merge, self.dtype = merge, dtype

    def __call__(
        self, patches: Float[Array, "batch time patch"], grids: Int[Array, "batch images 2"]
    ) -> Float[Array, "batch vectors dim"]:
        """The same vectors in the same order as of `PatchEmbedding`, for the same arguments."""
        x = ACTIVATIONS["gelu"](self.conv1(patches.astype(self.dtype)))
        batch, time, _ = x.shape
        member, _ = members(grids, time // self.merge**2, self.merge)
        pooled = self.conv2(beside(x, member).reshape(*member.shape[:2], -1))
        cls, split = self.cls[...].astype(self.dtype), self.split[...].astype(self.dtype)
        cls = jnp.broadcast_to(cls, (batch, grids.shape[1], cls.shape[0]))
        split = jnp.broadcast_to(split, (batch, 1, split.shape[0]))
        return jnp.concatenate([pooled, cls, split], axis=1)


def beside(
    x: Float[Array, "batch time dim"], member: Int[Array, "batch count members"]
) -> Float[Array, "batch count members dim"]:
    """The patches that each pooled vector is of."""
    flat = member.reshape(x.shape[0], -1, 1)
    return jnp.take_along_axis(x, flat, axis=1).reshape(*member.shape, -1)


def members(
    grids: Int[Array, "batch images 2"], count: int, merge: int
) -> tuple[Int[Array, "batch count members"], Int[Array, "batch count"]]:
    """Of each pooled vector of a row the patches that it is of, and its image, from 1; 0 where there is no vector."""
    image, row, column, begin = pooled_places(grids // merge, count)
    columns = jnp.take_along_axis(grids[..., 1], jnp.maximum(image - 1, 0), axis=1)
    offset = jnp.arange(merge)
    of_row = (row * merge)[..., None, None] + offset[:, None]
    of_column = (column * merge)[..., None, None] + offset
    member = (begin * merge**2)[..., None, None] + of_row * columns[..., None, None] + of_column
    member = jnp.where((image > 0)[..., None, None], member, 0)
    return member.reshape(*image.shape, -1), image


def pooled_places(grids: Int[Array, "batch images 2"], count: int) -> tuple[Array, Array, Array, Array]:
    """Of `count` vectors, those of each image row by row: image (from 1; 0 for none), row, column, and the image's
    first vector; each int32 [batch, count]."""
    sizes = grids[..., 0] * grids[..., 1]
    ends = jnp.cumsum(sizes, axis=1)
    place = jnp.arange(count)
    image = (place[:, None] >= ends[:, None, :]).sum(axis=2)
    there = place < ends[:, -1:]
    image = jnp.minimum(image, grids.shape[1] - 1)
    begin = jnp.take_along_axis(ends - sizes, image, axis=1)
    columns = jnp.maximum(jnp.take_along_axis(grids[..., 1], image, axis=1), 1)
    row, column = (place - begin) // columns, (place - begin) % columns
    zero = lambda x: jnp.where(there, x, 0)
    return zero(image + 1), zero(row), zero(column), zero(begin)


class PatchAligning(nnx.Module):
    """The patch aligning layer: what each patch's place has in several layers of a decoder, as an encoder's features.

    The last layer's features ask those of the others, each by a norm and a matrix of its own; the answer is added to a
    projection of the last.
    """

    def __init__(self, width: int, out_dim: int, taps: int, num_heads: int, *, dtype: str, rngs: nnx.Rngs):
        init, options = initializers("jax", width=out_dim, depth=1), {"dtype": dtype, "rngs": rngs}
        for i in range(taps):
            setattr(self, f"ln{i}", layer_norm(width, epsilon=EPSILON, **options))
            setattr(self, f"tap{i}", linear(width, out_dim, bias=False, init=init.head, **options))
        self.last = linear(width, out_dim, init=init.head, **options)
        self.out = linear(out_dim, out_dim, init=init.out, **options)
        self.taps, self.num_heads = taps, num_heads

    def __call__(self, features: Float[Array, "batch cells taps dim"]) -> Float[Array, "batch cells out_dim"]:
        """Args: features: of the layers, the last one first."""
        by_layer = []
        for i in range(self.taps):
            norm, project = getattr(self, f"ln{i}"), getattr(self, f"tap{i}")
            by_layer.append(project(norm.of_sum(features[:, :, i], None)))
        others = jnp.stack(by_layer[1:], axis=2)
        fused = attend_few(by_layer[0], others, others, self.num_heads)
        return self.last(features[:, :, 0]) + self.out(fused)


def pool_to(
    x: Float[Array, "batch count *dim"], grids: Int[Array, "batch images 2"], side: int
) -> Float[Array, "batch images side side *dim"]:
    """Each image's vectors averaged over `side` x `side` cells that cover its grid (adaptive average pooling).

    Cell i of a side has the rows from floor(i n / side) to ceil((i + 1) n / side), of n.
    """
    image, row, column, _ = pooled_places(grids, x.shape[1])
    cells = jnp.arange(side)

    def weights(place: Array, of: Array) -> Array:
        n = of[:, :, None, None]  # [batch, images, 1, 1]
        first, end = cells * n // side, -((-(cells + 1) * n) // side)
        inside = (place[:, None, :, None] >= first) & (place[:, None, :, None] < end)
        return inside / jnp.maximum(end - first, 1)

    own = image[:, None, :] == 1 + jnp.arange(grids.shape[1])[:, None]
    rows = weights(row, grids[..., 0]) * own[..., None]
    columns = weights(column, grids[..., 1])
    both = (rows[..., :, None] * columns[..., None, :]).astype(x.dtype)
    return jnp.einsum("bntij,bt...->bnij...", both, x)
