import itertools

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import Stepper, small_experiment
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.compiler_options import compiler_options
from vlm_jax.deterministic import proven
from vlm_jax.errors import UserError
from vlm_jax.startup import initialise


class Device:
    platform = "gpu"


def test_a_step_gives_the_same_bits_twice_and_goes_on_from_one(tmp_path):
    stepper = Stepper.make(small_experiment(tmp_path), jax.devices()[:1])
    calls, batch = [], stepper.batch()
    counted = lambda state, batch: calls.append(1) or stepper.update(state, batch)
    update = proven(counted)
    state, _ = update(initialise(stepper.plan), batch)
    wanted, _ = stepper.update(initialise(stepper.plan), batch)
    assert fingerprint(state.params) == fingerprint(wanted.params) and int(state.step) == 1
    update(state, batch)
    stepper.batches.close()
    assert len(calls) == 3  # two of the first step, one of the second


def test_one_that_gives_other_bits_is_refused(tmp_path):
    state = initialise(Stepper.make(small_experiment(tmp_path), jax.devices()[:1]).plan)
    noise = itertools.count()

    def update(state, batch):
        return state.replace(step=state.step + 1), {"loss": jnp.float32(1 + 1e-7 * next(noise))}

    with pytest.raises(UserError, match="not deterministic: metrics/loss of its first step"):
        proven(update)(state, {})


def test_what_the_compiler_of_a_gpu_is_told():
    assert compiler_options([Device], {}, deterministic=True) == {"xla_gpu_deterministic_ops": True}
    assert compiler_options([Device], {}) == {}
    assert compiler_options(jax.devices()[:1], {}, deterministic=True) == {}
