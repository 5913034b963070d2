"""Random crops of images that are on the device already."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def random_crops(
    image: Float[Array, "batch height width channels"],
    keys: Key[Array, " batch"],
    *,
    count: int,
    size: int,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Float[Array, "batch count size size channels"]:
    """Boxes of random area, aspect ratio and place (Szegedy et al. 2014, arXiv:1409.4842, section 6), resized.

    Interpolation is bilinear, and antialiased where a box is larger than `size`.

    Args:
      keys: one a row.
      area: range of a box's area, as a fraction of the image's.
      aspect: range of its width to height ratio; a box that would be longer than the image is as long as it.
    """
    height, width = image.shape[1:3]

    def one(image, key):
        draws = jax.random.uniform(key, (4,))
        pixels = height * width * (area[0] + draws[0] * (area[1] - area[0]))
        low, high = map(math.log, aspect)
        ratio = jnp.exp(low + draws[1] * (high - low))
        sides = jnp.stack([jnp.sqrt(pixels / ratio), jnp.sqrt(pixels * ratio)])
        whole = jnp.array([height, width], jnp.float32)
        sides = jnp.minimum(sides, whole)
        scale = size / sides
        shift = -draws[2:] * (whole - sides) * scale
        return jax.image.scale_and_translate(image, (size, size, image.shape[-1]), (0, 1), scale, shift, "linear")

    several = lambda image, key: jax.vmap(functools.partial(one, image))(jax.random.split(key, count))
    return jax.vmap(several)(image, keys)
