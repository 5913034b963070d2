"""Durations with units: `warmup_steps`, `warmup_examples`, `warmup_epochs` or `warmup_percent`; one is given."""

from __future__ import annotations

import dataclasses
import math

from vlm_jax.errors import UserError

UNITS = ("steps", "examples", "epochs", "percent")


def timed(*names: str):
    """Gives a dataclass the four optional fields `NAME_steps`, `_examples`, `_epochs`, `_percent` for each name.

    Written under `@dataclass`, so that it runs first; every field of the class needs a default before these.
    """

    def decorate(cls):
        fields = [(f"{name}_{unit}", float | int | None, None) for name in names for unit in UNITS]
        for field, kind, default in fields:
            cls.__annotations__[field] = kind
            setattr(cls, field, default)
        return cls

    return decorate


@dataclasses.dataclass(frozen=True)
class Clock:
    """What the units of a run are worth: `examples` a step, `epoch` examples an epoch, `total` steps in all."""

    batch_size: int
    epoch: int
    total: int | None = None

    def steps(self, component, name: str, default: int | None = None) -> int | None:
        """Steps of the duration `name` of `component`; `default` where no unit is given.

        Anything above zero is at least one step: a recipe's 1% warm-up survives a run of 10 steps.

        Raises:
          UserError: two units are given, the value is negative, or a percentage is asked of no total.
        """
        given = {u: getattr(component, f"{name}_{u}") for u in UNITS if getattr(component, f"{name}_{u}") is not None}
        if not given:
            return default
        if len(given) > 1:
            both = " and ".join(f"{name}_{unit}={value:g}" for unit, value in given.items())
            raise UserError(f"{both} are both given; give one of them (set the other to None).")
        ((unit, value),) = given.items()
        if not 0 <= value < math.inf:
            raise UserError(f"{name}_{unit}={value:g} must be a number from 0 on.")
        if unit == "percent" and self.total is None:
            raise UserError(f"{name}_percent needs a total; give {name}_steps, {name}_examples or {name}_epochs.")
        count = {
            "steps": lambda: value,
            "examples": lambda: value / self.batch_size,
            "epochs": lambda: value * self.epoch / self.batch_size,
            "percent": lambda: value / 100 * self.total,
        }[unit]()
        return math.ceil(count - 1e-9) if count < 1 else int(count + 1e-9)
