"""How far apart two sets of images are for a network: the distance of its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

from .inputs import wide
from .latents import check_floating, check_same_shape, global_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def perceptual_loss(
    first: Sequence[Float[Array, "batch *places dim"]],
    second: Sequence[Float[Array, "batch *places dim"]],
    *,
    eps: float = 1e-10,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """The squared distance of features that are scaled to unit length at each place, as the mean over places and the
    global batch, summed over layers.

    LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1) with all weights 1. `eps` is added to the squared length, so
    that features of zero have a gradient.

    Raises:
      ValueError: other numbers of layers, shapes, dtypes or axes than can be.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"both images need the features of the same layers; got {len(first)} and {len(second)} layers."
        )
    return sum(_distance(a, b, eps, axis_name) for a, b in zip(first, second))


def _distance(first, second, eps: float, axis_name) -> Array:
    first, second = check_floating("first", first), check_floating("second", second)
    check_same_shape(first=first, second=second)
    first, second = (x.astype(wide(x.dtype)) for x in (first, second))
    unit = lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True) + eps)
    return global_mean(((unit(first) - unit(second)) ** 2).sum(-1), axis_name)
