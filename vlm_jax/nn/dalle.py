"""The convolutional networks of DALL-E's tokenizer (Ramesh et al. 2021, arXiv:2102.12092, appendix A.2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Of the four groups, how many times `hidden` their channels are.
WIDTHS = (1, 2, 4, 8)


def conv(before: int, after: int, size: int, *, dtype: str, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution of the same size whose kernel is drawn from N(0, 1 / fan-in)."""
    init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return nnx.Conv(before, after, (size, size), kernel_init=init, dtype=jnp.dtype(dtype), rngs=rngs)


class ResidualPath(nnx.Module):
    """Four convolutions, each after a ReLU; all but one are 3 x 3, and the hidden ones are a quarter as wide."""

    def __init__(self, before: int, after: int, sizes: tuple[int, ...], *, dtype: str, rngs: nnx.Rngs):
        hidden = after // 4
        widths = (before, hidden, hidden, hidden, after)
        for i, size in enumerate(sizes):
            setattr(self, f"conv_{i + 1}", conv(widths[i], widths[i + 1], size, dtype=dtype, rngs=rngs))
        self.count = len(sizes)

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch rows cols after"]:
        for i in range(self.count):
            x = getattr(self, f"conv_{i + 1}")(jax.nn.relu(x))
        return x


class Block(nnx.Module):
    """`x + gain * path(x)`, with a 1 x 1 convolution of `x` where its width changes."""

    def __init__(self, before: int, after: int, sizes: tuple[int, ...], gain: float, *, dtype: str, rngs: nnx.Rngs):
        self.id_path = conv(before, after, 1, dtype=dtype, rngs=rngs) if before != after else None
        self.res_path = ResidualPath(before, after, sizes, dtype=dtype, rngs=rngs)
        self.gain = gain

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch rows cols after"]:
        return (x if self.id_path is None else self.id_path(x)) + self.gain * self.res_path(x)


class Group(nnx.Module):
    """Blocks of one width."""

    def __init__(self, before: int, after: int, count: int, *, block, rngs: nnx.Rngs):
        for i in range(count):
            setattr(self, f"block_{i + 1}", block(before if i == 0 else after, after, rngs=rngs))
        self.count = count

    def __call__(self, x: Float[Array, "batch rows cols before"]) -> Float[Array, "batch rows cols after"]:
        for i in range(self.count):
            x = getattr(self, f"block_{i + 1}")(x)
        return x


class Encoder(nnx.Module):
    """From pixels to features of every 8 x 8 of them: four groups, with the maximum of 2 x 2 after all but the last."""

    def __init__(self, hidden: int, blocks: int, *, dtype: str, rngs: nnx.Rngs):
        gain = 1 / (len(WIDTHS) * blocks) ** 2
        block = functools.partial(Block, sizes=(3, 3, 3, 1), gain=gain, dtype=dtype)
        widths = [hidden * times for times in WIDTHS]
        self.input = conv(3, hidden, 7, dtype=dtype, rngs=rngs)
        for i, (before, after) in enumerate(zip([hidden, *widths], widths)):
            setattr(self, f"group_{i + 1}", Group(before, after, blocks, block=block, rngs=rngs))

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols dim"]:
        x = self.input(image)
        for i in range(len(WIDTHS)):
            x = getattr(self, f"group_{i + 1}")(x)
            if i + 1 < len(WIDTHS):
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return jax.nn.relu(x)


class Decoder(nnx.Module):
    """The way back: groups in the other order, each pixel repeated 2 x 2 after all but the last."""

    def __init__(self, dim: int, hidden: int, blocks: int, channels: int, *, dtype: str, rngs: nnx.Rngs):
        gain = 1 / (len(WIDTHS) * blocks) ** 2
        block = functools.partial(Block, sizes=(1, 3, 3, 3), gain=gain, dtype=dtype)
        widths = [hidden * times for times in reversed(WIDTHS)]
        for i, (before, after) in enumerate(zip([dim, *widths], widths)):
            setattr(self, f"group_{i + 1}", Group(before, after, blocks, block=block, rngs=rngs))
        self.output = conv(hidden, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch height width channels"]:
        for i in range(len(WIDTHS)):
            x = getattr(self, f"group_{i + 1}")(x)
            if i + 1 < len(WIDTHS):
                x = doubled(x)
        return self.output(jax.nn.relu(x)).astype(jnp.float32)


def doubled(x: Float[Array, "batch rows cols dim"]) -> Float[Array, "batch twice_rows twice_cols dim"]:
    """Each pixel repeated 2 x 2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
