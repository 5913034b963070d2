"""The ways that the benchmark compares compute the same loss, and what it counts is what is there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import losses as benchmark
from benchmarks import open_clip_peer, pictures
from benchmarks.variants import LOSSES, OURS, VARIANTS, gradients, kept_for_backward
from vlm_jax.losses import reference

TWINS = {"sigmoid": reference.sigmoid_loss, "infonce": reference.infonce_loss}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_computes_the_loss_and_its_gradients(loss, variant):
    mesh = benchmark.mesh_of(jax.devices()[:4])
    inputs = benchmark.random_inputs(loss, 24, 16, mesh, jnp.float32)
    got = gradients(loss, variant, mesh)(*inputs)
    want = jax.value_and_grad(TWINS[loss], tuple(range(len(inputs))))(*inputs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_open_clip_computes_it_too(loss):
    """The peer's ranks, one by one, so that the bytes it is said to keep are those of the same loss."""
    torch = pytest.importorskip("torch", reason="open_clip runs on torch")
    peer = open_clip_peer.load()
    if peer is None:
        pytest.skip("needs open_clip_torch, the peer")
    inputs = benchmark.random_inputs(loss, 24, 16, benchmark.mesh_of(jax.devices()[:1]), jnp.float32)
    image, text = (torch.tensor(np.asarray(x)) for x in inputs[:2])
    scalars = [torch.tensor(float(x)) for x in inputs[2:]]
    ranks = [open_clip_peer.rank_loss(peer, loss, r, image.split(6), text.split(6), *scalars) for r in range(4)]
    assert float(sum(ranks)) / 4 == pytest.approx(float(TWINS[loss](*inputs)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_ours_alone_keeps_the_same_whatever_the_devices(loss):
    def at(variant, devices):
        return kept_for_backward(loss, variant, devices, 64 * devices, 32, jnp.float32)

    assert abs(at(OURS, 2) - at(OURS, 16)) < 16  # scale and bias are counted once for all devices
    for variant in set(VARIANTS) - {OURS}:
        assert at(variant, 16) > 1.5 * at(variant, 2)


@pytest.mark.full
def test_rows_become_a_table_and_a_picture(tmp_path):
    rows = [row for machine, batch in (("cpu:4", 64), ("cpu:2", 32)) for row in benchmark.compiled(machine, batch, 16)]
    ring = next(r for r in rows if r["devices"] == 4 and r["variant"] == "differentiated ring")
    hops = ring["collectives"]["collective-permute"]
    # The texts go round in bf16 (16 rows of 16 a hop), and their gradients come back, at most in f32.
    assert hops["count"] in (7, 8) and 8 * 16 * 16 * 2 <= hops["bytes"] <= 8 * 16 * 16 * 4
    results = {
        "limit": None,
        "kept_local_batch": 16,
        "compiled": rows,
        "kept": list(benchmark.kept([1, 2], 16, 8)),
        "measured": list(benchmark.measured([64], 16, repeats=2)),
    }
    text = benchmark.tables(results)
    assert text.count(OURS) == len(LOSSES) * 4  # two machines, bytes kept, measured
    pictures.draw(results, tmp_path / "memory.svg")
    assert "differentiated ring" in (tmp_path / "memory.svg").read_text()


@pytest.mark.full
def test_what_a_dense_program_needs_is_found():
    """At least the logits of one device's rows, in f32."""
    rows = {row["variant"]: row for row in benchmark.compiled("cpu:4", 512, 16) if row["loss"] == "sigmoid"}
    assert rows["dense"]["memory"] >= 4 * 512 * 512 / 4
    assert rows["dense"]["memory"] > rows[OURS]["memory"]
