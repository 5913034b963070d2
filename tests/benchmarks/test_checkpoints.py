"""The benchmark saves what a run saves, and its words say what it has measured."""

import pytest

from benchmarks import checkpoints as benchmark
from tests.helpers import SMALL
from vlm_jax.checkpoint import load_params


@pytest.mark.full
def test_a_small_run(tmp_path):
    changes = [(key, value) for key, value in SMALL.items() if key.startswith("task.")]
    found = benchmark.measure("siglip_tiny", changes, pairs=8, rounds=2, folder=tmp_path)
    assert load_params(tmp_path)[1]["step"] == 2 and found["bytes"] > 10_000
    assert set(found["wall_s"]) == {"plain", "guarded", "fingerprints", "save", "write"}
    assert all(value > 0 for value in found["wall_s"].values())
    text = "\n".join(benchmark.lines(found, every=100))
    assert "siglip_tiny, 8 pairs" in text and f"{found['save_over_step']:.1%} of a step" in text
