"""What the compiler of a platform is told with the step."""

import dataclasses

import jax
import pytest

from tests.helpers import small_experiment
from vlm_jax import program, startup
from vlm_jax.compiler_options import TPU_OVERLAP, compiler_options


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str


def test_messages_are_sent_beside_the_work_where_there_are_several_devices():
    assert compiler_options([Device("tpu")] * 4, {}) == TPU_OVERLAP
    assert compiler_options([Device("tpu")], {}) == {}
    assert compiler_options([Device("cpu")] * 4, {}) == {}


def test_what_the_config_says_wins():
    told = compiler_options([Device("tpu")] * 4, {"xla_enable_async_all_reduce": False, "xla_other": 1})
    assert told == TPU_OVERLAP | {"xla_enable_async_all_reduce": False, "xla_other": 1}


def test_the_step_is_compiled_with_what_the_config_says(tmp_path):
    experiment = dataclasses.replace(small_experiment(tmp_path), compiler_options={"xla_no_such_flag": True})
    plan = startup.make_plan(experiment, jax.devices()[:1])
    spec = experiment.task.batch_spec(experiment.batch_size)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_flag"):
        program.jitted_update(plan).lower(plan.placed(), spec).compile()
