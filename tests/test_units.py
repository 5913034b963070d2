"""Durations in steps, examples, epochs and percent."""

import dataclasses

import pytest

from vlm_jax.errors import UserError
from vlm_jax.units import Clock, timed


@dataclasses.dataclass(frozen=True)
@timed("warmup")
class Thing:
    pass


CLOCK = Clock(batch_size=100, epoch=1000, total=500)


@pytest.mark.parametrize(
    ("unit", "value", "steps"),
    [
        ("steps", 7, 7),
        ("examples", 1000, 10),
        ("epochs", 2, 20),
        ("epochs", 0.5, 5),
        ("percent", 10, 50),
        ("steps", 0, 0),
    ],
)
def test_units(unit, value, steps):
    assert CLOCK.steps(Thing(**{f"warmup_{unit}": value}), "warmup") == steps


def test_a_percentage_of_a_short_run_is_at_least_one_step():
    assert Clock(100, 1000, 10).steps(Thing(warmup_percent=1), "warmup") == 1


def test_none_given_is_the_default():
    assert CLOCK.steps(Thing(), "warmup") is None
    assert CLOCK.steps(Thing(), "warmup", 3) == 3


def test_two_units_are_an_error():
    with pytest.raises(UserError, match=r"warmup_steps=1 and warmup_percent=2 are both given"):
        CLOCK.steps(Thing(warmup_steps=1, warmup_percent=2), "warmup")


def test_negative_and_percent_of_nothing_are_errors():
    with pytest.raises(UserError, match="from 0 on"):
        CLOCK.steps(Thing(warmup_steps=-1), "warmup")
    with pytest.raises(UserError, match="needs a total"):
        Clock(100, 1000).steps(Thing(warmup_percent=2), "warmup")
