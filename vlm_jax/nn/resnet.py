"""Residual networks of convolutions (He et al. 2016, arXiv:1512.03385), with GroupNorm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import he_normal
from jaxtyping import Array, Float


class ConvNorm(nnx.Module):
    """A convolution without bias, then GroupNorm (Wu and He 2018, arXiv:1803.08494).

    Unlike batch norm it keeps no statistics, so that a network is a function of its parameters and one image.
    """

    def __init__(self, before: int, after: int, size: int, stride: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        self.conv = nnx.Conv(
            before,
            after,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=he_normal(),
            **options,
        )
        self.norm = nnx.GroupNorm(after, num_groups=groups, **options)

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch less_rows less_cols after"]:
        return self.norm(self.conv(x))


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions and what they are added to; the first may make the image smaller (figure 2)."""

    def __init__(self, before: int, after: int, stride: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        layer = functools.partial(ConvNorm, groups=groups, dtype=dtype, rngs=rngs)
        self.first = layer(before, after, 3, stride)
        self.second = layer(after, after, 3, 1)
        self.shortcut = layer(before, after, 1, stride) if stride > 1 or before != after else None

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch less_rows less_cols after"]:
        y = self.second(jax.nn.relu(self.first(x)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """From images to a map of features; every stage but the first halves it.

    With `large_stem` a 7x7 convolution and a maximum make a quarter of the image first, as on ImageNet; without, it is
    a 3x3 convolution at full size, as the paper has it on CIFAR-10.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        *,
        large_stem: bool,
        groups: int,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        options = {"groups": groups, "dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(3, channels[0], *((7, 2) if large_stem else (3, 1)), **options)
        self.large_stem, names = large_stem, []
        before = channels[0]
        for stage, (after, count) in enumerate(zip(channels, blocks)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                name = f"stage{stage}_block{block}"
                setattr(self, name, ResidualBlock(before, after, stride, **options))
                names.append(name)
                before = after
        self.names = tuple(names)

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols channels"]:
        x = jax.nn.relu(self.stem(image))
        if self.large_stem:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for name in self.names:
            x = getattr(self, name)(x)
        return x
