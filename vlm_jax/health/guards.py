"""Guards in the step: what is not finite, losses that leap, gradients that are outliers.

All of it is arithmetic on scalars inside the jitted step, the same on any mesh. What it remembers, the last losses and
gradient norms, is part of the train state and of a checkpoint's `meta`, so that a resumed run judges as one that was
never stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vlm_jax.errors import UserError

# Of normally distributed values, what the median of absolute deviations is to be multiplied by to be their deviation.
NORMAL = 1.4826
# Losses that hardly vary (all the same batch, all zero) have a deviation of at least this share of their median.
LEAST = 1e-2

Memory = dict[str, dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Scales a gradient down whose norm is an outlier among the last ones.

    It may have `factor` times their `quantile`. With a factor of 1 this is AutoClip (Seetharaman et al. 2020, arXiv
    2007.14469, eq. 3), over a window instead of the whole past; `optimizer.clip_norm` may cut further.

    Attributes:
      quantile, factor: of the norms before clipping.
      window: norms that are remembered; nothing is clipped before there are so many.
    """

    quantile: float = 0.9
    factor: float = 2.0
    window: int = 128

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        if not 0 < self.quantile <= 1:
            raise UserError(f"guards.clip.quantile={self.quantile:g} is a share of the norms, above 0 and at most 1.")
        if self.factor <= 0:
            raise UserError(f"guards.clip.factor={self.factor:g} must be above zero.")
        _check_window("clip", self.window)


@dataclasses.dataclass(frozen=True)
class Spikes:
    """Notices a loss that leaps up: `deviations` above the median of the last ones.

    The deviation is the median absolute one (Hampel 1974), which neither a slow fall nor a few leaps change. The losses
    of a spike are remembered as well: where the level has changed for good, it is the usual one after half a window.

    Attributes:
      action: `report` counts and tells it; `skip` also drops the update; `rewind` drops it, and after `in_a_row` of
        them takes the last checkpoint up again and leaves out the data between it and the end of the spike (as
        Chowdhery et al. 2022, arXiv 2204.02311, section 5.1, did by hand).
      deviations: so far above the median is a spike.
      window: losses that are remembered; there is no spike before there are so many.
      in_a_row: spikes that make a rewind.
      rewinds: how often, from one checkpoint; then the run stops.
      leave_out: steps whose data are left out beyond the spike.
    """

    action: Literal["report", "skip", "rewind"] = "report"
    deviations: float = 10.0
    window: int = 128
    in_a_row: int = 3
    rewinds: int = 3
    leave_out: int = 0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        if self.deviations <= 0:
            raise UserError(f"guards.spikes.deviations={self.deviations:g} must be above zero.")
        _check_window("spikes", self.window)
        for name, least in (("in_a_row", 1), ("rewinds", 1), ("leave_out", 0)):
            if getattr(self, name) < least:
                raise UserError(f"guards.spikes.{name}={getattr(self, name)} must be at least {least}.")


@dataclasses.dataclass(frozen=True)
class Guards:
    """What is done about updates that would do harm.

    One whose loss or gradient is not finite is always dropped.

    Attributes:
      not_finite: after so many of those in a row the run stops, with a dump for `python -m vlm_jax.replay`; None goes
        on for ever.
      clip: of gradients that are outliers; None clips none.
      spikes: of the loss; None looks for none.
    """

    not_finite: int | None = 10
    clip: Clip | None = None
    spikes: Spikes | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        if self.not_finite is not None and self.not_finite < 1:
            raise UserError(f"guards.not_finite={self.not_finite} must be at least 1; None never stops.")

    def empty(self) -> Memory:
        """What is remembered before the first step: rings of `last` values, and how many there have been."""
        windows = {"grad_norm": self.clip and self.clip.window, "loss": self.spikes and self.spikes.window}
        return {
            name: {"last": jnp.zeros(window, jnp.float32), "count": jnp.zeros((), jnp.int32)}
            for name, window in windows.items()
            if window
        }


class Judgement(NamedTuple):
    """Of one update: whether it is made, what its gradient is multiplied by (None: nothing), metrics, and the memory
    after it."""

    good: Bool[Array, ""]
    scale: Float[Array, ""] | None
    metrics: dict[str, Array]
    memory: Memory


def judge(guards: Guards, memory: Memory, loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Judgement:
    """Judges an update by its loss and the global norm of its gradient, before anything is changed by it."""
    finite = good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    scale, metrics, after = None, {"skipped": 1.0 - finite}, {}
    if guards.clip is not None:
        ring = memory["grad_norm"]
        most = guards.clip.factor * jnp.quantile(ring["last"], guards.clip.quantile)
        clipped = finite & _is_full(ring) & (grad_norm > most)
        scale = jnp.where(clipped, most / grad_norm, 1.0)
        metrics["clipped"] = clipped.astype(jnp.float32)
        after["grad_norm"] = _push(ring, grad_norm, finite)
    if guards.spikes is not None:
        ring = memory["loss"]
        median = jnp.median(ring["last"])
        deviation = NORMAL * jnp.median(jnp.abs(ring["last"] - median))
        high = median + guards.spikes.deviations * jnp.maximum(deviation, LEAST * jnp.abs(median))
        spike = finite & _is_full(ring) & (loss > high)
        metrics["spikes"] = spike.astype(jnp.float32)
        after["loss"] = _push(ring, loss, finite)
        if guards.spikes.action != "report":
            good = good & ~spike
    return Judgement(good, scale, metrics, after)


def _is_full(ring: Mapping[str, Array]) -> Bool[Array, ""]:
    return ring["count"] >= ring["last"].size


def _push(ring: Mapping[str, Array], value: Float[Array, ""], finite: Bool[Array, ""]) -> dict[str, Array]:
    place = jnp.arange(ring["last"].size) == ring["count"] % ring["last"].size
    return {
        "last": jnp.where(place & finite, value.astype(jnp.float32), ring["last"]),
        "count": ring["count"] + finite,
    }


# Between a memory and the JSON of a checkpoint


def to_json(memory: Memory) -> dict[str, Any]:
    return jax.tree.map(lambda x: np.asarray(x).tolist(), memory)


def from_json(guards: Guards, saved: Mapping[str, Any] | None) -> Memory:
    """What was saved, where the guards still remember as much; else what is there before the first step."""
    memory = guards.empty()
    for name, ring in memory.items():
        if saved and name in saved and len(saved[name]["last"]) == ring["last"].size:
            memory[name] = {key: jnp.asarray(saved[name][key], ring[key].dtype) for key in ring}
    return memory


def _check_window(name: str, window: int) -> None:
    if window < 8:
        raise UserError(f"guards.{name}.window={window} must be at least 8.")
