"""Quantisers without a codebook to learn: every number is rounded by itself."""

from __future__ import annotations

import abc
import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.losses import codebook
from vlm_jax.models.bottlenecks.base import Bottleneck, Moment, Passed, State, project, projections
from vlm_jax.nn.functional import Params

MOST_COUNTED = 2**18  # codes whose uses a step counts


class Rounded(Bottleneck):
    """A quantiser of each channel, and how its codes are used."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Channels that are rounded."""

    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """`in` and `out`: to the channels and from them."""
        return projections(key, in_dim, (self.dim, self.dim), out_dim)

    @abc.abstractmethod
    def quantised(self, z: Float[Array, "tokens dim"]) -> losses.Quantised:
        """The quantiser itself."""

    @abc.abstractmethod
    def numbers(self, codes: Int[Array, "tokens"]) -> Float[Array, "tokens dim"]:
        """What codes stand for."""

    def weighed(self, z: Float[Array, "tokens dim"], at: Moment) -> dict:
        """Losses of its own."""
        return {}

    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """See `Bottleneck.apply`."""
        z = project(params["in"], x)
        found, metrics = self.quantised(z), {}
        if self.vocab_size <= MOST_COUNTED:
            count = codebook.count_codes(found.codes, self.vocab_size, axis_name=at.axis_name)
            metrics = dict(zip(("codes_used", "perplexity"), codebook.usage(count)))
        vectors = project(params["out"], found.vectors).astype(x.dtype)
        return Passed(vectors, found.codes, self.weighed(z, at) if at.train else {}, state, metrics)

    def codes(self, params: Params, state: State, x: Float[Array, "tokens in_dim"]) -> Int[Array, "tokens"]:
        """The code of each feature."""
        return self.quantised(project(params["in"], x)).codes

    def vectors(self, params: Params, state: State, codes: Int[Array, "tokens"]) -> Float[Array, "tokens dim"]:
        """The codes' vectors as the decoder gets them, f32."""
        return project(params["out"], self.numbers(codes))


@dataclasses.dataclass(frozen=True)
class FSQ(Rounded):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): `levels` of each channel."""

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self):
        if not self.levels or min(self.levels) < 3:
            raise UserError(f"levels={self.levels}: wanted are numbers of at least 3, such as (8, 5, 5, 5).")

    @property
    def dim(self) -> int:
        """Channels that are rounded."""
        return len(self.levels)

    @property
    def vocab_size(self) -> int:
        """Points of the grid."""
        return math.prod(self.levels)

    def quantised(self, z: Float[Array, "tokens dim"]) -> losses.Quantised:
        """See `losses.fsq`."""
        return losses.fsq(z, self.levels)

    def numbers(self, codes: Int[Array, "tokens"]) -> Float[Array, "tokens dim"]:
        """See `losses.fsq_vectors`."""
        return losses.fsq_vectors(codes, self.levels)


@dataclasses.dataclass(frozen=True)
class LFQ(Rounded):
    """Look-up-free quantisation (MAGVIT-v2, Yu et al. 2023, arXiv:2310.05737): the sign of each of `bits` channels.

    Attributes:
      beta: weight of the commitment loss, |z - sign z|^2.
      entropy: weight of the entropy of each token's code less that of all codes.
      temperature: of the codes' probabilities.
    """

    bits: int = 10
    beta: float = 0.25
    entropy: float = 0.1
    temperature: float = 0.01

    def __post_init__(self):
        if not 1 <= self.bits <= 30:
            raise UserError(f"bits={self.bits}: wanted are 1 to 30.")
        if min(self.beta, self.entropy) < 0 or self.temperature <= 0:
            raise UserError(
                f"beta={self.beta}, entropy={self.entropy}, temperature={self.temperature}: wanted are weights of at "
                "least 0 and a positive temperature."
            )

    @property
    def dim(self) -> int:
        """Channels whose signs are taken."""
        return self.bits

    @property
    def vocab_size(self) -> int:
        """Codes that bits make."""
        return 2**self.bits

    def quantised(self, z: Float[Array, "tokens dim"]) -> losses.Quantised:
        """See `losses.lfq`."""
        return losses.lfq(z)

    def numbers(self, codes: Int[Array, "tokens"]) -> Float[Array, "tokens dim"]:
        """See `losses.lfq_vectors`."""
        return losses.lfq_vectors(codes, self.bits)

    def weighed(self, z: Float[Array, "tokens dim"], at: Moment) -> dict:
        """Commitment, and the entropies."""
        commitment = losses.vq_losses(z, jnp.where(z > 0, 1.0, -1.0), axis_name=at.axis_name)[1]
        each, together = losses.lfq_entropies(z, temperature=self.temperature, axis_name=at.axis_name)
        return {"commitment": (self.beta, commitment), "entropy": (self.entropy, each - together)}
