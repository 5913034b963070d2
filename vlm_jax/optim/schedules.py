"""Learning-rate schedules as multipliers of the peak, with durations in any unit of `units.timed`.

`make(clock)` gives `step -> multiplier` in [0, 1], where `step` counts the updates already made (0 for the first). With
W updates of warm-up the multiplier is (step + 1) / W, so that the first update is not spent at zero and the update of
step W - 1 is at the peak (open_clip's convention). Decays start at step W, and reach their end at step `total`, one
after the last update, so that the last update is not spent at zero either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.errors import UserError
from vlm_jax.units import Clock, timed

# Lengths go in as floats: a large recipe with a small batch, to try it, has more steps than an int32 holds.
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
@timed("warmup")
class Cosine:
    """Half a cosine from the peak to `final` of it (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts)."""

    final: float = 0.0

    def __post_init__(self):
        self.validate()

    def validate(self):
        if not 0 <= self.final <= 1:
            raise UserError(f"schedule.final={self.final:g} is a fraction of the peak; give one between 0 and 1.")

    def make(self, clock: Clock) -> Schedule:
        """`step -> multiplier`. Raises UserError where the run has no length or the warm-up does not fit in it."""
        warmup, total = _warmup(self, clock), _total(clock, "cosine")

        def multiplier(step):
            step = jnp.asarray(step, jnp.float32)
            progress = jnp.clip((step - float(warmup)) / float(max(total - warmup, 1)), 0, 1)
            return _ramp(step, warmup) * (self.final + (1 - self.final) * (1 + jnp.cos(jnp.pi * progress)) / 2)

        return multiplier


@dataclasses.dataclass(frozen=True)
@timed("warmup", "timescale", "cooldown")
class Rsqrt:
    """1 / sqrt(1 + t / timescale) for t updates after the warm-up, with a linear cooldown to zero at the end.

    It does not depend on the length of the run, so a run can be prolonged from before its cooldown (Zhai et al. 2022,
    arXiv:2106.04560, section 3.5). `timescale` is 10,000 steps unless given.
    """

    def make(self, clock: Clock) -> Schedule:
        """`step -> multiplier`. Raises UserError where warm-up and cooldown do not fit in the run."""
        warmup = _warmup(self, clock)
        timescale = float(max(clock.steps(self, "timescale", 10_000), 1))
        down = _cooldown(self, clock, warmup)

        def multiplier(step):
            step = jnp.asarray(step, jnp.float32)
            decay = jnp.sqrt(timescale / (timescale + jnp.maximum(step - float(warmup), 0)))
            return _ramp(step, warmup) * decay * down(step)

        return multiplier


@dataclasses.dataclass(frozen=True)
@timed("warmup", "cooldown")
class Constant:
    """The peak throughout, with a linear cooldown to zero at the end (Hägele et al. 2024, arXiv:2405.18392)."""

    def make(self, clock: Clock) -> Schedule:
        """`step -> multiplier`. Raises UserError where warm-up and cooldown do not fit in the run."""
        warmup = _warmup(self, clock)
        down = _cooldown(self, clock, warmup)

        def multiplier(step):
            step = jnp.asarray(step, jnp.float32)
            return _ramp(step, warmup) * down(step)

        return multiplier


def _ramp(step, warmup: int):
    return jnp.minimum(1.0, (step + 1) / float(max(warmup, 1)))


def _total(clock: Clock, what: str) -> int:
    if clock.total is None:
        raise UserError(f"schedule: {what} needs the length of the run; give the run's total steps.")
    return clock.total


def _warmup(schedule, clock: Clock) -> int:
    warmup = clock.steps(schedule, "warmup", 0)
    if clock.total is not None and warmup > clock.total:
        raise UserError(f"schedule: a warm-up of {warmup} steps does not fit in a run of {clock.total} steps.")
    return warmup


def _cooldown(schedule, clock: Clock, warmup: int) -> Callable:
    cooldown = clock.steps(schedule, "cooldown", 0)
    if not cooldown:
        return lambda step: 1.0
    total = _total(clock, "a cooldown")
    if warmup + cooldown > total:
        raise UserError(
            f"schedule: warm-up of {warmup} and cooldown of {cooldown} steps do not fit in a run of {total} steps."
        )
    return lambda step: jnp.clip((float(total) - step) / float(cooldown), 0.0, 1.0)
