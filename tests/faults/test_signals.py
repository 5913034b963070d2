"""SIGTERM to a run of one process, and to one of four; twice. To one of two: tests/multi/test_runs.py."""

import os
import signal

import pytest

from tests.faults import runs
from tests.multi.jobs import metrics, run_flags
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.stop import on_signals


def test_the_first_asks_and_the_second_stops_at_once():
    with on_signals() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.full
def test_a_run_that_is_told_to_stop_saves_and_says_that_it_is_to_be_started_again(tmp_path):
    runs.prepare(tmp_path)
    run = runs.Running(runs.flags(tmp_path, checkpoint_steps="100"))
    assert run.reaches("@step", 4)
    run.process.terminate()
    code, lines = run.done()
    stopped = latest_step(tmp_path / "run")
    assert code == 128 + signal.SIGTERM and stopped >= 3 and any("saved; the same command" in line for line in lines)


@pytest.mark.full
def test_one_of_four_is_told_and_all_save_the_same_step(launch, tmp_path):
    straight = launch(4, *run_flags(tmp_path / "whole"), devices=1).done()
    job = launch(4, *run_flags(tmp_path / "run"), devices=1)
    job.wait_for("step 3/20")
    job.processes[2].send_signal(signal.SIGTERM)
    job.done(128 + signal.SIGTERM)
    stopped = latest_step(tmp_path / "run")
    assert 3 < stopped < 20 and f"stopped after step {stopped}, saved" in job.text()
    launch(4, *run_flags(tmp_path / "run"), devices=1).done()
    marks = [read_meta(tmp_path / name / "checkpoints" / "20")["fingerprints"] for name in ("whole", "run")]
    assert marks[0] == marks[1] and metrics(tmp_path / "run") == metrics(tmp_path / "whole"), straight.text()
