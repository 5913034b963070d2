"""The logit-Laplace likelihood of pixels: a Laplace distribution of their logits, so that it ends where pixels do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import wide
from .latents import check_floating, check_same_shape, global_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EPS = 0.1  # of DALL-E: keeps logits of black and white finite


def map_pixels(pixels: Float[Array, "*batch"], eps: float = EPS) -> Float[Array, "*batch"]:
    """(1 - 2 eps) pixels + eps: [0, 1] to [eps, 1 - eps] (Ramesh et al. 2021, arXiv:2102.12092, appendix A.3)."""
    _check_eps(eps)
    return (1 - 2 * eps) * check_floating("pixels", pixels) + eps


def unmap_pixels(mapped: Float[Array, "*batch"], eps: float = EPS) -> Float[Array, "*batch"]:
    """The inverse of `map_pixels`, clipped to [0, 1]; an image is `unmap_pixels(sigmoid(mean))`."""
    _check_eps(eps)
    return jnp.clip((check_floating("mapped", mapped) - eps) / (1 - 2 * eps), 0, 1)


def logit_laplace_nll(
    mapped: Float[Array, "*batch"], mean: Float[Array, "*batch"], log_scale: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """-log density of each mapped pixel x in (0, 1), in nats: |logit x - mean| / b + log 2b + log x(1 - x).

    b = exp(log_scale); mean and b are those of the logit (arXiv:2102.12092, equation 2).

    Raises:
      ValueError: at trace time, for shapes or dtypes that cannot be.
    """
    arguments = {"mapped": mapped, "mean": mean, "log_scale": log_scale}
    arguments = {name: check_floating(name, x) for name, x in arguments.items()}
    check_same_shape(**arguments)
    x, mean, log_scale = (x.astype(wide(x.dtype)) for x in arguments.values())
    log_x, log_rest = jnp.log(x), jnp.log1p(-x)
    return jnp.abs(log_x - log_rest - mean) * jnp.exp(-log_scale) + log_scale + jnp.log(2.0) + log_x + log_rest


def logit_laplace_loss(
    pixels: Float[Array, "*batch"],
    mean: Float[Array, "*batch"],
    log_scale: Float[Array, "*batch"],
    *,
    eps: float = EPS,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Mean over all pixels and channels of the global batch of `logit_laplace_nll`, of pixels in [0, 1].

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or eps out of (0, 1/2).
    """
    pixels = jax.lax.stop_gradient(check_floating("pixels", pixels))
    return global_mean(logit_laplace_nll(map_pixels(pixels, eps), mean, log_scale), axis_name)


def _check_eps(eps: float) -> None:
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must be in (0, 0.5); got {eps}.")
