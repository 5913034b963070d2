"""The Gaussian posterior of a VAE: its divergence from the standard normal, and samples of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import check_axes, wide
from .latents import check_floating, check_same_shape, first_row, global_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PRNGKeyArray


def gaussian_kl(
    mean: Float[Array, "batch *latent"],
    log_variance: Float[Array, "batch *latent"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Mean over the global batch of KL(N(mean, variance) || N(0, 1)), in nats, summed over the latents of an example.

    1/2 (mean^2 + variance - 1 - log variance) each (Kingma and Welling 2013, arXiv:1312.6114).

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be.
    """
    mean, log_variance = _check(mean, log_variance)
    mean, log_variance = (x.astype(wide(x.dtype)) for x in (mean, log_variance))
    return global_mean((mean**2 + jnp.expm1(log_variance) - log_variance) / 2, axis_name, over="rows")


def gaussian_sample(
    key: PRNGKeyArray,
    mean: Float[Array, "batch *latent"],
    log_variance: Float[Array, "batch *latent"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "batch *latent"]:
    """mean + sqrt(variance) noise, with gradients to both. Noise depends on the row of the global batch alone."""
    mean, log_variance = _check(mean, log_variance)
    axes = check_axes("axis_name", axis_name, mean=mean)
    rows = first_row(mean.shape[0], axes) + jnp.arange(mean.shape[0])
    noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), mean.shape[1:]))(rows)
    return (mean + jnp.exp(log_variance / 2) * noise).astype(mean.dtype)


def _check(mean, log_variance):
    mean, log_variance = check_floating("mean", mean), check_floating("log_variance", log_variance)
    check_same_shape(mean=mean, log_variance=log_variance)
    if not mean.ndim:
        raise ValueError("mean must have a batch axis; got a scalar.")
    return mean, log_variance
