"""A convolutional network that judges each patch of an image (pix2pix: Isola et al. 2017, arXiv:1611.07004)."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn.vqgan import norm

WIDEST = 8  # times the first width
SLOPE = 0.2


class PatchGan(nnx.Module):
    """4 x 4 convolutions that halve the image `layers` times, then two that keep it; norms between the first and the
    last, leaky ReLUs before all but the first."""

    def __init__(self, width: int, layers: int, groups: int, *, dtype: str, rngs: nnx.Rngs):
        draw = jax.nn.initializers.normal(0.02)
        conv = functools.partial(
            nnx.Conv, kernel_size=(4, 4), padding=1, kernel_init=draw, dtype=jnp.dtype(dtype), rngs=rngs
        )
        widths = [width * min(2**i, WIDEST) for i in range(layers + 1)]
        self.conv_in = conv(3, width, strides=2)
        for i, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            setattr(self, f"conv_{i}", conv(before, after, strides=2 if i < layers else 1, use_bias=False))
            setattr(self, f"norm_{i}", norm(after, groups, dtype=dtype, rngs=rngs))
        self.conv_out = conv(widths[-1], 1)
        self.layers = layers

    def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch rows cols"]:
        x = jax.nn.leaky_relu(self.conv_in(image), SLOPE)
        for i in range(1, self.layers + 1):
            x = jax.nn.leaky_relu(getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x)), SLOPE)
        return self.conv_out(x)[..., 0].astype(jnp.float32)
