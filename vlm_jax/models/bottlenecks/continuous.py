"""Latents that are numbers: as they are, or with noise and a prior."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.models.bottlenecks.base import Bottleneck, Moment, Passed, Ramp, State, project, projections
from vlm_jax.nn.functional import Params


@dataclasses.dataclass(frozen=True)
class Deterministic(Bottleneck):
    """A plain autoencoder: `dim` numbers a place."""

    dim: int = 4

    def __post_init__(self):
        if self.dim < 1:
            raise UserError(f"dim={self.dim} must be at least 1.")

    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """`in` and `out`: to `dim` and from it."""
        return projections(key, in_dim, (self.dim, self.dim), out_dim)

    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """See `Bottleneck.apply`."""
        z = project(params["in"], x)
        return Passed(project(params["out"], z).astype(x.dtype), None, {}, state, {})


@dataclasses.dataclass(frozen=True)
class Gaussian(Bottleneck):
    """A variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114): `dim` means and variances a place.

    Attributes:
      beta: weight of the KL divergence to N(0, 1), in nats a latent (Higgins et al. 2017), or a ramp of it. With the L2
        loss, a mean over subpixels, 1 is the evidence bound of a unit-variance decoder only where there are as many
        latents as subpixels.
    """

    dim: int = 4
    beta: float | Ramp = 1e-3

    def __post_init__(self):
        if self.dim < 1:
            raise UserError(f"dim={self.dim} must be at least 1.")

    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """`in` to means and logarithms of variances, `out` from a sample."""
        return projections(key, in_dim, (2 * self.dim, self.dim), out_dim)

    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """See `Bottleneck.apply`; a sample in training, the mean otherwise."""
        mean, log_variance = jnp.split(project(params["in"], x), 2, axis=-1)
        log_variance = jnp.clip(log_variance, -30, 20)
        z = losses.gaussian_sample(at.key, mean, log_variance, axis_name=at.axis_name) if at.train else mean
        kl = losses.gaussian_kl(mean, log_variance, axis_name=at.axis_name) / self.dim
        beta = self.beta.at(at) if isinstance(self.beta, Ramp) else self.beta
        vectors = project(params["out"], z).astype(x.dtype)
        return Passed(vectors, None, {"kl": (beta, kl)}, state, {})
