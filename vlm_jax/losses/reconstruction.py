"""Plain distances of images: means over all elements of the global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from .inputs import wide
from .latents import check_floating, check_same_shape, global_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def l1_loss(
    prediction: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Mean of |prediction - target|. Raises ValueError for shapes, dtypes or axes that cannot be."""
    return global_mean(jnp.abs(_difference(prediction, target)), axis_name)


def l2_loss(
    prediction: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Mean of (prediction - target)^2, not halved. Raises ValueError for shapes, dtypes or axes that cannot be."""
    return global_mean(_difference(prediction, target) ** 2, axis_name)


def _difference(prediction, target):
    prediction, target = check_floating("prediction", prediction), check_floating("target", target)
    check_same_shape(prediction=prediction, target=target)
    return prediction.astype(wide(prediction.dtype)) - target.astype(wide(target.dtype))
