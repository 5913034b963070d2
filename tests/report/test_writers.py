"""Metrics on disk: lines that strict parsers read, whatever kills the run."""

from __future__ import annotations

import json
import math
import resource
import sys
import types

import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.report.writers import JsonlWriter, TensorBoardWriter, WandbWriter, Writers, read_metrics, replace_file


def strict(text: str):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def steps(path) -> list[int]:
    return [strict(line)["step"] for line in path.read_text().splitlines()]


def test_each_line_is_strict_json_with_step_and_floats(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write(np.int64(200), {"train/loss": np.float32(0.5), "train/lr": 1})
    writer.write(200, {"eval/zero_shot/top1": 0.25})
    first, second = map(strict, path.read_text().splitlines())  # not closed: each line is out when written
    assert first == {"step": 200, "train/loss": 0.5, "train/lr": 1.0}
    assert second == {"step": 200, "eval/zero_shot/top1": 0.25}


def test_non_finite_values_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path).write(1, {"nan": math.nan, "inf": math.inf, "-inf": -math.inf})
    assert strict(path.read_text()) == {"step": 1, "nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    (line,) = read_metrics(path)
    assert math.isnan(line["nan"]) and line["inf"] == math.inf and line["-inf"] == -math.inf


def test_float32_values_are_kept_exactly(tmp_path):
    path, values = tmp_path / "metrics.jsonl", np.random.default_rng(0).normal(size=100).astype(np.float32)
    writer = JsonlWriter(path)
    for i, value in enumerate(values):
        writer.write(i, {"x": value})
    np.testing.assert_array_equal(np.array([line["x"] for line in read_metrics(path)], np.float32), values)


def test_step_cannot_be_overwritten_by_a_metric(tmp_path):
    with pytest.raises(ValueError, match="step"):
        JsonlWriter(tmp_path / "metrics.jsonl").write(1, {"step": 3.0})


def test_a_line_torn_at_any_byte_is_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2):
        writer.write(step, {"loss": step / 8})
    writer.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        writer = JsonlWriter(path)
        writer.write(3, {"loss": 0.5})
        writer.close()
        # Without its newline the second line is still whole.
        assert steps(path) == ([1, 2, 3] if cut >= len(whole) - 1 else [1, 3])


def test_zeros_left_by_a_lost_machine_are_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(300))
    JsonlWriter(path).write(2, {})
    assert steps(path) == [1, 2]


def test_replayed_steps_are_written_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (10, 20, 20, 30):
        writer.write(step, {"loss": 1.0})
    writer.close()
    writer = JsonlWriter(path)
    writer.truncate_after(20)
    writer.write(30, {"loss": 2.0})
    assert steps(path) == [10, 20, 20, 30]
    assert [line["loss"] for line in read_metrics(path)] == [1.0, 1.0, 1.0, 2.0]
    writer.truncate_after(0)
    assert path.read_bytes() == b""
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_kill_while_truncating_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in (1, 2, 3):
        writer.write(step, {})
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.truncate_after(1)
    assert path.read_bytes() == before


def test_replace_file_replaces(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_read_metrics_passes_over_what_is_not_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 1, "loss": 2, "note": "words", "list": [1]}\n[1]\n\n{"loss": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1.0, "loss": 2.0}]


def test_writers_are_all_called(tmp_path):
    writers = Writers([JsonlWriter(tmp_path / "metrics.jsonl"), TensorBoardWriter(tmp_path / "events")], pytest.fail)
    writers.truncate_after(0)  # a fresh run says so too
    assert not (tmp_path / "events").exists()
    writers.write(1, {"loss": 1.0})
    writers.truncate_after(0)
    writers.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert len(list((tmp_path / "events").iterdir())) == 1


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished = True


def test_wandb_continues_in_the_same_run(tmp_path, monkeypatch):
    calls, run = [], FakeRun()
    fake = types.SimpleNamespace(init=lambda **arguments: calls.append(arguments) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        writer = WandbWriter("vlm", tmp_path / "tiny", config={"depth": 4})
        writer.truncate_after(3)
        writer.write(5, {"train/loss": np.float32(0.5)})
        writer.close()
    assert calls[0]["id"] == calls[1]["id"] and calls[0]["resume"] == "allow"
    assert (calls[0]["project"], calls[0]["name"], calls[0]["config"]) == ("vlm", "tiny", {"depth": 4})
    assert run.logged == [(5, {"train/loss": 0.5})] * 2 and run.finished


def test_wandb_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        WandbWriter("vlm", tmp_path)


def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path):
    lines = []
    writers = Writers([JsonlWriter(tmp_path / "metrics.jsonl"), TensorBoardWriter(tmp_path / "events")], lines.append)
    writers.write(1, {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len((tmp_path / "metrics.jsonl").read_bytes()) + 5, hard))
    try:
        for step in (2, 3):
            writers.write(step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(line.split(":")[0] for line in lines) == ["JsonlWriter", "TensorBoardWriter"]
    assert steps(tmp_path / "metrics.jsonl") == [1]
    writers.write(4, {"loss": 1.0})
    writers.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    (events,) = (tmp_path / "events").iterdir()
    assert events.read_bytes().count(b"loss") == 4


def test_a_rewind_on_a_full_disk_is_made_up_for(tmp_path):
    """Steps 2 to 4 are of before the rewind to step 1; 4 was still waiting."""
    lines, path = [], tmp_path / "metrics.jsonl"
    writers = Writers([JsonlWriter(path)], lines.append)
    for step in (1, 2, 3):
        writers.write(step, {"loss": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        writers.write(4, {"loss": 1.0})
        writers.truncate_after(1)
        writers.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(path) == [1, 2, 3] and len(lines) == 1
    writers.write(3, {"loss": 2.0})
    writers.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 2.0)]
