"""Kernels are counted, with their instructions, with what they move, or with their work."""

import dataclasses

import pytest

from vlm_jax.plan import bundles, kernels
from vlm_jax.plan.hlo import Kernel
from vlm_jax.plan.topologies import parse

KERNEL = Kernel("k", ("bf16[1024,1024]",), ("bf16[1024,1024]",), 0.0, count=10, moved=819e9 / 4)


def known(monkeypatch, cycles: int) -> None:
    monkeypatch.setattr(bundles, "counts", lambda calls, chip: {call: (cycles, 0) for call in calls})


def test_a_kernel_that_nothing_is_known_of_moves_its_operands_and_results():
    (found,) = kernels.times([KERNEL], parse("v5e:1x1"))
    assert found.seconds == pytest.approx(1 / 4) and found.source == kernels.MOVING


def test_its_own_estimate_counts_where_it_has_one():
    (found,) = kernels.times([dataclasses.replace(KERNEL, flops=197e12)], parse("v5e:1x1"))
    assert found.seconds == pytest.approx(10.0) and found.source == kernels.AT_PEAK


def test_scheduled_instructions_count_where_they_are_known(monkeypatch):
    known(monkeypatch, 1_500_000_000)
    (found,) = kernels.times([KERNEL], parse("v5e:4x4"))
    assert found.seconds == pytest.approx(10.0) and found.source == kernels.SCHEDULED


def test_moving_counts_where_it_takes_longer(monkeypatch):
    known(monkeypatch, 1500)
    (found,) = kernels.times([KERNEL], parse("v5e:4x4"))
    assert found.seconds == pytest.approx(1 / 4) and found.source == kernels.MOVING


@pytest.mark.parametrize("stage, products", [("fwd_segmented", 2), ("dq", 3), ("dkv", 4)])
def test_splash_attention_is_counted_by_its_tiles(stage, products):
    """Two rows of two heads, 512 tokens in tiles of 128: of 16 tiles 10 are on the diagonal or below it."""
    arrays = ("s8[1,4,4]", "s8[1,4,4]", "bf16[2,2,1,512,64]", "bf16[2,2,512,64]", "bf16[2,2,512,64]", "s32[2,512,128]")
    causal = Kernel(f"splash_mqa_{stage}_no_residuals", (*arrays, "s32[512,128]"), (), 0.0, count=1, moved=0)
    every = products * 2 * 4 * 512 * 512 * 64
    assert kernels.flops(causal) == every * 10 / 16
    assert kernels.flops(dataclasses.replace(causal, operands=arrays)) == every
    assert kernels.flops(dataclasses.replace(causal, flops=1.0)) == 1.0
    (found,) = kernels.times([causal], parse("v5e:1x1"))
    assert found.source == kernels.AT_PEAK
