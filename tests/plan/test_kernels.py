"""Kernels are counted, with their instructions or with a bound."""

import pytest

from vlm_jax.plan import bundles, kernels
from vlm_jax.plan.hlo import Kernel
from vlm_jax.plan.topologies import parse

KERNEL = Kernel("k", ("bf16[1024,1024]",), ("bf16[1024,1024]",), 1, 0.0, 0.0)


def test_a_kernel_that_nothing_is_known_of_moves_its_operands_and_results():
    (found,) = kernels.times({KERNEL: 10.0}, parse("v5e:1x1"))
    assert found.seconds == pytest.approx(10 * 2 * 2 * 1024**2 / 819e9)
    assert "bound" in found.source


def test_its_own_estimate_counts_where_it_has_one():
    kernel = Kernel("k", (), (), 1, flops=197e12, bytes=819e9 / 2)
    assert kernels.bound(kernel, parse("v5e:1x1")) == pytest.approx(1.0)


def test_scheduled_instructions_count_where_they_are_known(monkeypatch):
    monkeypatch.setattr(bundles, "cycles_of", lambda calls, chip: {call: 1500 for call in calls})
    (found,) = kernels.times({KERNEL: 10.0}, parse("v5e:4x4"))
    assert found.seconds == pytest.approx(10 * 1500 / 1.5e9)
