"""The restated peer is the same model, its step trains, and rows become a table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import big_vision_peer
from benchmarks import step_vs_big_vision as benchmark


@pytest.mark.parametrize("scan", [False, True])
def test_the_peer_has_our_parameters(scan):
    experiment = benchmark.experiment_of(8, 2)
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    ours = jax.eval_shape(experiment.task.init, jax.random.key(0))["params"]
    batch = experiment.task.batch_spec(1)
    peer = big_vision_peer.SigLIP(depth=2, scan=scan)
    inputs = [jnp.zeros(batch[name].shape, batch[name].dtype) for name in ("image", "text")]
    theirs = jax.eval_shape(lambda: peer.init(jax.random.key(0), *inputs))["params"]
    assert count(theirs) == count(ours)


@pytest.mark.full
def test_the_peer_learns_a_batch():
    model = big_vision_peer.SigLIP(width=32, depth=1, hidden=64, heads=2, vocab=50, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8), "text": rng.integers(0, 50, (4, 8))}
    params = model.init(jax.random.key(0), batch["image"], batch["text"])["params"]
    tx = optax.adam(1e-2)
    step, state, losses = jax.jit(big_vision_peer.train_step(model, tx)), (params, tx.init(params)), []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2


def test_layers_are_counted_on():
    few, more = {"temporaries": 10.0, "xla_ms": 3.0}, {"temporaries": 12.0, "xla_ms": 4.0, "all-reduce/bytes": 1.0}
    assert benchmark.extrapolate(few, more) == {"temporaries": 30.0, "xla_ms": 13.0, "all-reduce/bytes": 10.0}


def test_a_table_says_what_does_not_fit():
    row = {"pairs": 32, "floor_ms": 5.0, "limit": 2**34}
    figures = {"temporaries": 2**30, "traffic": 2**33, "xla_ms": 8.0, "kernels_ms": 2.0, "all-reduce/bytes": 2**20}
    rows = [
        row | figures | {"which": benchmark.OURS},
        row | figures | {"which": benchmark.SCAN, "xla_ms": 18.0},
        row | {"which": benchmark.LOOP, "needed": 2**35},
    ]
    lines = benchmark.table(rows).splitlines()
    assert "| 50.0 | 1.00 | 1 |" in lines[2] and "| 25.0 | 2.00 | 1 |" in lines[3] and "32,768" in lines[4]
