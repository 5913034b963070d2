import math

import jax
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.optim import Constant, Cosine, Rsqrt
from vlm_jax.units import Clock

CLOCK = Clock(batch_size=10, epoch=200, total=100)


def values(schedule, steps, clock=CLOCK):
    multiplier = schedule.make(clock)
    return np.array([float(multiplier(step)) for step in steps])


@pytest.mark.parametrize("schedule", [Cosine, Rsqrt, Constant])
def test_warmup_is_linear_and_wastes_no_update(schedule):
    np.testing.assert_allclose(values(schedule(warmup_steps=4), range(5)), [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    assert values(schedule(), [0])[0] == 1.0


@pytest.mark.parametrize("schedule", [Cosine, Rsqrt, Constant])
@pytest.mark.parametrize("unit", [{"warmup_examples": 100}, {"warmup_epochs": 0.5}, {"warmup_percent": 10}])
def test_warmup_in_every_unit(schedule, unit):
    np.testing.assert_array_equal(values(schedule(**unit), range(100)), values(schedule(warmup_steps=10), range(100)))


def test_cosine_falls_from_the_peak_to_final():
    schedule = Cosine(final=0.1, warmup_steps=20)
    got = values(schedule, [20, 60, 100, 10_000])
    np.testing.assert_allclose(got, [1.0, 0.55, 0.1, 0.1], rtol=1e-6)
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    np.testing.assert_allclose(values(schedule, [40]), quarter, rtol=1e-6)


def test_cosine_to_zero_still_moves_on_the_last_update():
    assert 0 < values(Cosine(), [99])[0] < 1e-3
    assert values(Cosine(), [100])[0] < 1e-7


def test_rsqrt_halves_after_three_timescales():
    schedule = Rsqrt(warmup_steps=10, timescale_steps=20)
    np.testing.assert_allclose(values(schedule, [9, 10, 70]), [1.0, 1.0, 0.5], rtol=1e-6)
    default = Rsqrt(warmup_steps=10)
    np.testing.assert_allclose(values(default, [30_010], Clock(1, 1)), 0.5, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Rsqrt(timescale_steps=10**9, cooldown_percent=20), Constant(cooldown_steps=20)])
def test_cooldown_is_linear_to_zero_one_past_the_last_update(schedule):
    got = values(schedule, [0, 80, 90, 99, 100, 200])
    np.testing.assert_allclose(got, [1.0, 1.0, 0.5, 0.05, 0.0, 0.0], rtol=1e-5)


@pytest.mark.parametrize(
    "schedule", [Cosine(warmup_percent=50), Rsqrt(timescale_percent=50), Constant(cooldown_percent=50)]
)
def test_a_run_may_have_more_steps_than_an_int32_holds(schedule):
    clock = Clock(batch_size=1, epoch=200, total=10**10)
    got = float(jax.jit(schedule.make(clock))(np.int32(5)))
    assert 0 < got <= 1 and np.isfinite(got)


@pytest.mark.parametrize("schedule", [Cosine(final=0.2, warmup_percent=50), Rsqrt(cooldown_percent=30), Constant()])
def test_multipliers_stay_between_zero_and_one(schedule):
    got = values(schedule, range(100))
    assert (got > 0).all() and (got <= 1).all()


@pytest.mark.parametrize(
    "schedule, clock, message",
    [
        (Cosine(warmup_steps=101), CLOCK, "warm-up of 101 steps does not fit"),
        (Constant(warmup_steps=60, cooldown_steps=60), CLOCK, "do not fit in a run of 100"),
        (Cosine(), Clock(1, 1), "needs the length of the run"),
        (Constant(cooldown_steps=5), Clock(1, 1), "needs the length of the run"),
        (Cosine(warmup_steps=1, warmup_percent=1), CLOCK, "both given"),
    ],
)
def test_durations_that_do_not_fit(schedule, clock, message):
    with pytest.raises(UserError, match=message):
        schedule.make(clock)


def test_final_is_a_fraction():
    with pytest.raises(UserError, match="fraction"):
        Cosine(final=1.5)
