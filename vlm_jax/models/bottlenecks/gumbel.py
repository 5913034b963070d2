"""The discrete VAE's bottleneck: a sample of a categorical distribution, relaxed while it is trained."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.losses import codebook
from vlm_jax.models.bottlenecks.base import Bottleneck, Moment, Passed, Ramp, State
from vlm_jax.nn.functional import Params


@dataclasses.dataclass(frozen=True)
class Gumbel(Bottleneck):
    """Gumbel-softmax (DALL-E: Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.2).

    Parameters: `head` [size, in_dim] and `bias` [size], the encoder's last convolution; `codebook` [size, out_dim], the
    decoder's first one, over one-hot codes. Both start as convolutions do, with a variance of one over their inputs:
    with a codebook of variance 1 the noise of mixtures is large, and a few codes win that make it small.

    Attributes:
      size: codes.
      temperature: of the relaxation. The paper's goes to 1/16 in 150,000 steps.
      beta: weight of the KL divergence to the uniform distribution, in nats a place. The paper's goes to 6.6 in 5,000
        steps beside losses that are sums over an image, so that beside a mean over its 256 x 256 x 3 subpixels its
        weight is 6.6 / 192 for each of 32 x 32 places.
      hard: the decoder sees one code, also in training.
    """

    size: int = 8192
    temperature: float | Ramp = Ramp(1.0, 1 / 16, steps=150_000)
    beta: float | Ramp = Ramp(0.0, 6.6 / 192, steps=5000)
    hard: bool = False

    def __post_init__(self):
        if self.size < 2:
            raise UserError(f"size={self.size} must be at least 2.")
        ends = self.temperature if isinstance(self.temperature, Ramp) else Ramp(self.temperature, self.temperature, 1)
        if min(ends.start, ends.end) <= 0:
            raise UserError(f"temperature={self.temperature} must be positive from start to end.")

    @property
    def vocab_size(self) -> int:
        """Codes that there are."""
        return self.size

    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """Parameters as nested dicts of f32 arrays."""
        one, two = jax.random.split(key)
        return {
            "head": jax.random.normal(one, (self.size, in_dim)) * in_dim**-0.5,
            "bias": jnp.zeros(self.size),
            "codebook": jax.random.normal(two, (self.size, out_dim)) * self.size**-0.5,
        }

    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """See `Bottleneck.apply`; without training the decoder sees the likeliest code."""
        if not at.train:
            codes = self.codes(params, state, x)
            return Passed(self.vectors(params, state, codes).astype(x.dtype), codes, {}, state, self._used(codes, at))
        temperature, beta = (r.at(at) if isinstance(r, Ramp) else jnp.float32(r) for r in (self.temperature, self.beta))
        arguments = params["head"], params["bias"], params["codebook"], temperature, at.key
        found = losses.gumbel_softmax(x, *arguments, hard=self.hard, axis_name=at.axis_name)
        kl = found.kl.mean()
        kl = jax.lax.pmean(kl, at.axis_name) if at.axis_name else kl
        metrics = {**self._used(found.codes, at), "temperature": temperature}
        return Passed(found.vectors, found.codes, {"kl": (beta, kl)}, state, metrics)

    def codes(self, params: Params, state: State, x: Float[Array, "tokens in_dim"]) -> Int[Array, "tokens"]:
        """The likeliest code of each feature."""
        return losses.most_likely_code(x, params["head"], params["bias"])

    def vectors(self, params: Params, state: State, codes: Int[Array, "tokens"]) -> Float[Array, "tokens dim"]:
        """The codes' rows, f32."""
        return losses.look_up(params["codebook"], codes)

    def _used(self, codes: Int[Array, "tokens"], at: Moment) -> dict[str, Array]:
        count = codebook.count_codes(codes, self.size, axis_name=at.axis_name)
        return dict(zip(("codes_used", "perplexity"), codebook.usage(count)))
