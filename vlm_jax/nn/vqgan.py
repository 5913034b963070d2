"""The convolutional networks of VQGAN (Esser et al. 2020, arXiv:2012.09841, table 7), after DDPM's U-Net."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn.dalle import doubled

EPS = 1e-6


def conv(before: int, after: int, size: int = 3, *, dtype: str, rngs: nnx.Rngs, **options) -> nnx.Conv:
    """A convolution of the same size unless `options` have a stride; kernels as in the lecun_normal of Flax."""
    return nnx.Conv(before, after, (size, size), dtype=jnp.dtype(dtype), rngs=rngs, **options)


def norm(width: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm, whose groups are at most `groups`."""
    return nnx.GroupNorm(width, num_groups=min(groups, width), epsilon=EPS, dtype=jnp.dtype(dtype), rngs=rngs)


class ResidualBlock(nnx.Module):
    """Two convolutions, each after norm and swish, and what they are added to."""

    def __init__(self, before: int, after: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm1, self.conv1 = norm(before, groups, **options), conv(before, after, **options)
        self.norm2, self.conv2 = norm(after, groups, **options), conv(after, after, **options)
        self.shortcut = conv(before, after, 1, **options) if before != after else None

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch rows cols after"]:
        h = self.conv1(jax.nn.swish(self.norm1(x)))
        h = self.conv2(jax.nn.swish(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Attention of every place to every other, with one head as wide as the features."""

    def __init__(self, width: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.norm = norm(width, groups, **options)
        self.q, self.k, self.v, self.out = (conv(width, width, 1, **options) for _ in range(4))

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch rows cols dim"]:
        h = self.norm(x)
        heads = lambda part: part(h).reshape(h.shape[0], -1, 1, h.shape[-1])
        out = jax.nn.dot_product_attention(heads(self.q), heads(self.k), heads(self.v))
        return x + self.out(out.reshape(h.shape))


class Level(nnx.Module):
    """Blocks at one size, each with attention where that is wanted."""

    def __init__(self, before: int, after: int, count: int, attention: bool, groups: int, *, dtype: str, rngs):
        for i in range(count):
            block = ResidualBlock(before if i == 0 else after, after, groups, dtype=dtype, rngs=rngs)
            setattr(self, f"block_{i}", block)
            if attention:
                setattr(self, f"attn_{i}", AttentionBlock(after, groups, dtype=dtype, rngs=rngs))
        self.count, self.attention = count, attention

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch rows cols after"]:
        for i in range(self.count):
            x = getattr(self, f"block_{i}")(x)
            x = getattr(self, f"attn_{i}")(x) if self.attention else x
        return x


class Middle(nnx.Module):
    """Block, attention, block at the smallest size."""

    def __init__(self, width: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.block_1, self.block_2 = (ResidualBlock(width, width, groups, **options) for _ in range(2))
        self.attn_1 = AttentionBlock(width, groups, **options)

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch rows cols dim"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nnx.Module):
    """From pixels to features of `dim`, at a size that is halved after each level but the last.

    `attention` says of each level whether it has attention.
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        groups: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.conv_in = conv(3, widths[0], **options)
        before = widths[0]
        for i, (after, attend) in enumerate(zip(widths, attention)):
            setattr(self, f"down_{i}", Level(before, after, blocks, attend, groups, **options))
            if i + 1 < len(widths):  # one pixel of padding at the bottom and the right
                half = conv(after, after, strides=2, padding=((0, 1), (0, 1)), **options)
                setattr(self, f"downsample_{i}", half)
            before = after
        self.mid = Middle(before, groups, **options)
        self.norm_out, self.conv_out = norm(before, groups, **options), conv(before, dim, **options)
        self.levels = len(widths)

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols dim"]:
        x = self.conv_in(image)
        for i in range(self.levels):
            x = getattr(self, f"down_{i}")(x)
            x = getattr(self, f"downsample_{i}")(x) if i + 1 < self.levels else x
        return self.conv_out(jax.nn.swish(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """The way back, with one block more a level; pixels are repeated 2 x 2 and go through a convolution."""

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[bool],
        groups: int,
        channels: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.conv_in = conv(dim, widths[-1], **options)
        self.mid = Middle(widths[-1], groups, **options)
        level = functools.partial(Level, count=blocks + 1, groups=groups, **options)
        before = widths[-1]
        for i in reversed(range(len(widths))):
            setattr(self, f"up_{i}", level(before, widths[i], attention=attention[i]))
            if i:
                setattr(self, f"upsample_{i}", conv(widths[i], widths[i], **options))
            before = widths[i]
        self.norm_out, self.conv_out = norm(before, groups, **options), conv(before, channels, **options)
        self.levels = len(widths)

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch height width channels"]:
        x = self.mid(self.conv_in(x))
        for i in reversed(range(self.levels)):
            x = getattr(self, f"up_{i}")(x)
            x = getattr(self, f"upsample_{i}")(doubled(x)) if i else x
        return self.conv_out(jax.nn.swish(self.norm_out(x))).astype(jnp.float32)
