"""Every pipeline of the benchmark does the same job, and each of its tables is filled."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from benchmarks import data, data_peers
from benchmarks.data_peers import OURS, PIPELINES, TEXT, TF, TORCH
from vlm_jax.data.image import ImageTransform

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    data.write(folder, data.Photographs(20, 120, 160, different=20))
    return folder


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(data_peers, "BATCH", 8)
    monkeypatch.setattr(data, "BATCH", 8)


@pytest.mark.parametrize("interpolation", data.INTERPOLATIONS)
@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_give_the_same_rows(name, interpolation, folder, small_batches):
    entry = PIPELINES[name]
    if missing := entry.missing():
        pytest.skip(f"pip install {' '.join(missing)}")
    source, exact = data_peers.open_tars(folder), ImageTransform(interpolation=interpolation, decoder="full")
    wanted = {TEXT(record["text"])[0].tobytes(): exact(record["image"]) for record in (source[k] for k in range(20))}
    batches = iter(entry.make(folder, 1, interpolation, **entry.options))
    batch = {name: np.asarray(value) for name, value in next(batches).items()}
    if hasattr(batches, "close"):
        batches.close()
    images = batch["image"].transpose(0, 2, 3, 1) if name == TORCH else batch["image"]
    assert images.shape == (8, 224, 224, 3) and images.dtype == np.uint8 and batch["text"].dtype == np.int32
    rows = [row.tobytes() for row in batch["text"]]
    assert set(rows) <= set(wanted) and rows != sorted(rows)
    for image, row in zip(images, rows):
        assert np.abs(image.astype(int) - wanted[row]).mean() < 2


@needs_affinity
def test_everything_is_measured(tmp_path, monkeypatch, capsys, small_batches):
    monkeypatch.setattr(data, "child", lambda cores, function, *arguments: data.one(function, *map(str, arguments)))
    monkeypatch.setattr(data, "PIPELINES", {name: PIPELINES[name] for name in (OURS, TF)})
    monkeypatch.setattr(data, "TARS", (1, 4))
    arguments = ["--seconds=0.01", "--rounds=2", "--cores=1", "--images=10", "--examples=200", "--index=1000"]
    monkeypatch.setattr("sys.argv", ["data", *arguments, f"--output={tmp_path}"])
    data.main()
    results = json.loads((tmp_path / "data.json").read_text())
    for interpolation in data.INTERPOLATIONS:
        rates = results["speed"][OURS]["1"][interpolation]
        assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    assert [row["workers"] for row in results["memory"]] == [0, 2]
    assert all(len(row["megabytes"]) == len(data.MARKS) for row in results["memory"])
    assert [(row["tars"], row["samples"]) for row in results["index"]] == [(1, 1000)] * 2 + [(4, 1000)] * 2
    out = capsys.readouterr().out
    assert out.count(f"| {OURS} | bi") == 2 and "| 1,000 | 4 | cold |" in out
    if PIPELINES[TF].missing():
        assert f"| {TF} | skipped: pip install tensorflow-cpu |" in out


@needs_affinity
def test_a_process_of_its_own_is_bound_to_a_core(folder):
    found = data.child(1, "opening", folder, folder / "tar")
    assert found["samples"] == 20 and found["open_ms"] > 0
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        data.child(1, "speed", folder, "nothing", 0.1)


def test_the_table_compares_round_by_round():
    rates = lambda *values: {"1": {"bicubic": {"per_core": [1, 2], "per_cpu_second": list(values)}}}
    found = {OURS: rates(400, 200), TF: rates(100, 100), TORCH: {"error": "it failed"}}
    for name in (OURS, TF):
        found[name]["1"]["bilinear"] = found[name]["1"]["bicubic"]
    lines = data.speed_table(found, [1]).splitlines()
    assert lines[2] == f"| {OURS} | bicubic | 2 | 400 | 1.00 |"
    assert lines[4] == f"| {TF} | bicubic | 2 | 100 | 0.38 |"
    assert lines[6].startswith(f"| {TORCH} | error: it failed |")
