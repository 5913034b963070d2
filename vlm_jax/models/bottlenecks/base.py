"""What an autoencoder asks of its bottleneck."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vlm_jax.errors import UserError
from vlm_jax.nn.functional import Params

State = dict[str, Any]
Axes = str | tuple[str, ...] | None


class Moment(NamedTuple):
    """When and where a bottleneck is applied.

    `key` is that of the step, `axis_name` the mesh axes that the rows are split over inside `jax.shard_map`.
    """

    key: Key[Array, ""]
    step: Int[Array, ""]
    total_steps: int
    train: bool
    axis_name: Axes = None


class Passed(NamedTuple):
    """What comes out. `losses` have a weight and a mean over the global batch each; their sum is added to the loss."""

    vectors: Float[Array, "tokens dim"]
    codes: Int[Array, "tokens *stages"] | None
    losses: dict[str, tuple[Float[Array, ""] | float, Float[Array, ""]]]
    state: State
    metrics: dict[str, Float[Array, ""]]


class Bottleneck(abc.ABC):
    """Pure functions over parameters and a state that is not trained by gradient.

    Features [tokens, in_dim] come in, and vectors [tokens, out_dim] go out, both in the dtype of the features.
    """

    vocab_size: int | None = None  # codes that there are; None where latents are numbers
    stages: int | None = None  # codes that each place has, where they are several

    @abc.abstractmethod
    def init(self, key: Array, in_dim: int, out_dim: int) -> Params:
        """Parameters as nested dicts of f32 arrays."""

    def init_state(self, key: Array) -> State:
        """Arrays that are carried from step to step; {} for none."""
        return {}

    @abc.abstractmethod
    def apply(self, params: Params, state: State, x: Float[Array, "tokens in_dim"], at: Moment) -> Passed:
        """Through the bottleneck in training, or with `at.train` false as `vectors` of `codes`."""

    def codes(self, params: Params, state: State, x: Float[Array, "tokens in_dim"]) -> Int[Array, "tokens *stages"]:
        """The code of each feature. Raises UserError where there are none."""
        raise UserError(f"{type(self).__name__} has no codes: its latents are numbers.")

    def vectors(self, params: Params, state: State, codes: Int[Array, "tokens *stages"]) -> Float[Array, "tokens dim"]:
        """What the decoder sees of codes, f32. Raises UserError where there are none."""
        raise UserError(f"{type(self).__name__} has no codes: its latents are numbers.")


def projections(key: Array, in_dim: int, dims: tuple[int, int], out_dim: int) -> Params:
    """Linear maps of each place, as convolutions of 1 x 1 are: `in` to the first of `dims`, `out` from the second."""
    one, two = jax.random.split(key)
    draw = lambda key, *shape: jax.random.normal(key, shape) * shape[0] ** -0.5
    return {
        "in": {"kernel": draw(one, in_dim, dims[0]), "bias": jnp.zeros(dims[0])},
        "out": {"kernel": draw(two, dims[1], out_dim), "bias": jnp.zeros(out_dim)},
    }


def project(params: Params, x: Float[Array, "tokens before"]) -> Float[Array, "tokens after"]:
    """One of `projections`, f32."""
    return x.astype(jnp.float32) @ params["kernel"] + params["bias"]


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that goes from `start` to `end` along half a cosine, and stays there.

    Attributes:
      steps: of the way; or `percent` of the run.
    """

    start: float = 0.0
    end: float = 1.0
    steps: int | None = None
    percent: float | None = None

    def __post_init__(self):
        if (self.steps is None) == (self.percent is None):
            raise UserError(f"Ramp(steps={self.steps}, percent={self.percent}): give one of the two.")
        if (self.steps or self.percent) <= 0:
            raise UserError(f"Ramp(steps={self.steps}, percent={self.percent}) must be positive.")

    def at(self, moment: Moment) -> Float[Array, ""]:
        """The number at a step, counted from 0."""
        way = float(self.steps if self.steps is not None else max(1, moment.total_steps * self.percent / 100))
        progress = jnp.clip(jnp.asarray(moment.step, jnp.float32) / way, 0, 1)
        return self.end + (self.start - self.end) * (1 + jnp.cos(jnp.pi * progress)) / 2
