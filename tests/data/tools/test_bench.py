"""`bench`: counts what was given out, and says what this process and its workers used."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools import bench
from vlm_jax.data.tools.bench import HEADER, Speed
from vlm_jax.data.tools.command import main


def test_what_is_measured():
    batches = Pipeline(Shapes(size=50), ImageTransform(size=8), threads=1).batches(seed=0, batch_size=5, rows=range(5))
    found = bench.measure(batches, 5, warm_up=2, seconds=0.05, step_s=0.01)
    batches.close()
    assert found.images == 5 * len(found.waits) > 0
    assert found.waits.sum() <= found.seconds - 0.01 * len(found.waits)
    assert found.cpu_seconds is None or found.cpu_seconds > 0


def test_a_line_has_the_columns_of_the_header():
    speed = Speed(1000, 2.0, 4.0, np.array([0.1, 0.3]), (512.0, 3.0))
    assert speed.line().split() == ["500", "250", "200.0", "298.0", "300.0", "20%", "512", "3"]
    assert Speed(1000, 2.0, None, np.array([0.1]), None).line().split()[1] == "-"
    assert len(f"{0:>7} {0:>7} {speed.line()}") == len(HEADER)


def busy() -> None:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    time.sleep(60)


def test_cpu_time_and_memory_of_workers_count():
    if (cpu := bench.cpu_seconds()) is None or (held := bench.megabytes()) is None:
        pytest.skip("needs /proc")
    worker = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
    worker.start()
    try:
        end = time.monotonic() + 60
        while bench._cpu_of(worker.pid) < 0.2 and time.monotonic() < end:
            time.sleep(0.05)
        assert bench.cpu_seconds() - cpu >= 0.2
        assert bench.megabytes() > held
    finally:
        worker.kill()
        worker.join()


def test_a_line_for_each_number_of_workers_and_threads(capsys):
    argv = ["bench", "shapes", "--source.size=64", "--workers=0,1", "--threads=1,2", "--size=32", "--batch_size=8"]
    assert main([*argv, "--seconds=0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HEADER and [line.split()[:2] for line in lines[1:5]] == [
        ["0", "1"],
        ["0", "2"],
        ["1", "1"],
        ["1", "2"],
    ]
    assert lines[5].startswith("shapes/train, 64 records, batches of 8")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--workers=a", "--workers=a: wanted are numbers"),
        ("--threads=-1", "--threads=-1: wanted are numbers"),
        ("--seconds=0", "--seconds of more than 0"),
        ("--resize=stretch", "resize='stretch'"),
    ],
)
def test_mistakes(flag, line, capsys):
    assert main(["bench", "shapes", "--source.size=8", flag]) == 2
    assert line in capsys.readouterr().err
