"""The benchmark against open_clip compares the same model, and runs where there is no GPU."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest

from benchmarks import gpu
from vlm_jax import config as configs
from vlm_jax.overrides import override

SMALL = gpu.geometry("S", width=64, depth=2)


@pytest.mark.full
def test_ours_takes_steps():
    found = gpu.measure_ours(SMALL, batch=2, repeats=1)
    assert len(found["seconds"]) == 5 and found["flops"] > 0


@pytest.mark.full
def test_both_have_the_same_parameters():
    if not all(importlib.util.find_spec(name) for name in ("torch", "timm", "open_clip")):
        pytest.skip("needs open_clip_torch, the peer")
    peer = gpu.open_clip_model(gpu.import_open_clip(), SMALL)
    config = configs.load("siglip_b16:smoke").task.model
    for name, value in SMALL._asdict().items():
        override(config, f"image.{name}", str(value))
        override(config, f"text.{name}", str(value))
    override(config, "text.out_dim", str(SMALL.width))
    params = jax.eval_shape(configs.build(config).init, jax.random.key(0))["params"]
    ours = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert ours == sum(x.numel() for x in peer.parameters())


def test_the_table_says_what_failed_and_how_many_times_faster():
    row = {"size": "B", "batch": 8, "peak": 2**21, "mfu_percent": 50.0}
    rows = [
        row | {"which": gpu.OURS, "pairs_per_s": 200.0},
        row | {"which": gpu.PEER, "pairs_per_s": 100.0},
        {"size": "L", "which": gpu.PEER, "error": "out of memory"},
    ]
    text = gpu.table(rows)
    assert "| 2.00 |" in text and "out of memory" in text and "| 50.0 | 2 |" in text
