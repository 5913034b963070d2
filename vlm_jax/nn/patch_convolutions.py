"""Patches by one matrix, and residual blocks of convolutions without norms among them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Block(nnx.Module):
    """Two 3 x 3 convolutions, each after a ReLU; the second starts at zero (Zhang et al. 2019, arXiv:1901.09321)."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs):
        options = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        self.conv_1 = nnx.Conv(width, width, (3, 3), kernel_init=jax.nn.initializers.he_normal(), **options)
        self.conv_2 = nnx.Conv(width, width, (3, 3), kernel_init=jax.nn.initializers.zeros, **options)

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch rows cols dim"]:
        return x + self.conv_2(jax.nn.relu(self.conv_1(jax.nn.relu(x))))


class Blocks(nnx.Module):
    """Several, one after the other."""

    def __init__(self, width: int, count: int, *, dtype: str, rngs: nnx.Rngs):
        for i in range(count):
            setattr(self, f"block_{i + 1}", Block(width, dtype=dtype, rngs=rngs))
        self.count = count

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch rows cols dim"]:
        for i in range(self.count):
            x = getattr(self, f"block_{i + 1}")(x)
        return x


class Encoder(nnx.Module):
    """From pixels to features of patches."""

    def __init__(self, width: int, blocks: int, patch_size: int, *, dtype: str, rngs: nnx.Rngs):
        size = (patch_size, patch_size)
        self.patch = nnx.Conv(3, width, size, size, padding="VALID", dtype=jnp.dtype(dtype), rngs=rngs)
        self.blocks = Blocks(width, blocks, dtype=dtype, rngs=rngs)

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols dim"]:
        return self.blocks(self.patch(image))


class Decoder(nnx.Module):
    """The way back; the bias of pixels starts at grey."""

    def __init__(self, width: int, blocks: int, patch_size: int, channels: int, *, dtype: str, rngs: nnx.Rngs):
        self.blocks = Blocks(width, blocks, dtype=dtype, rngs=rngs)
        grey = jax.nn.initializers.constant(0.5)
        pixels = patch_size**2 * channels
        self.head = nnx.Linear(width, pixels, bias_init=grey, dtype=jnp.dtype(dtype), rngs=rngs)
        self.shape = (patch_size, patch_size, channels)

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch height width channels"]:
        x = self.head(self.blocks(x)).astype(jnp.float32)
        batch, rows, cols, _ = x.shape
        size, _, channels = self.shape
        return (
            x.reshape(batch, rows, cols, *self.shape).swapaxes(2, 3).reshape(batch, rows * size, cols * size, channels)
        )
