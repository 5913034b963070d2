"""SIGTERM to a run of one process, and to one of four; twice. To one of two: tests/multi/test_runs.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from tests.faults import runs
from tests.multi.jobs import ROOT, metrics, run_flags
from vlm_jax import train
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.stop import Stop, Stopped, on_signals


def test_the_first_asks_and_the_second_ends():
    ends, ended = [], threading.Event()
    with on_signals(lambda *end: (ends.append(end), ended.set())) as stop, stop.only_asked():
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM and not ends
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.wait(60) and stop.signal == signal.SIGTERM
    assert ends == [("stopped at once by a second SIGINT", 130)]


def test_before_the_loop_the_first_ends_the_program():
    ends, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, on_signals(lambda *end: ends.append(end)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143 and not ends and signal.getsignal(signal.SIGTERM) is before


def test_one_that_came_too_late_for_the_loop_is_known_to_all():
    class Three:
        def gather(self, value):
            return [None, value, None]

    with on_signals(lambda *end: None) as stop:
        assert stop.by_now(Three()) == 0
        with stop.only_asked():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.by_now(Three()) == 143


@pytest.mark.parametrize(("asks", "signals"), [(True, 2), (False, 1)], ids=["loop", "start"])
def test_a_process_ends_that_is_in_a_long_c_function(asks, signals):
    """In the loop at the second signal; before it at the first, after `PATIENCE`. `finally` is not waited for."""
    text = f"""
import ctypes, os, signal
from vlm_jax import stop as stops
from vlm_jax.processes import Alone
stops.PATIENCE = 0.1
with stops.on_signals(Alone().end) as stop:
    stop.asks = {asks}
    print("ready", flush=True)
    try:
        libc = ctypes.CDLL(None)
        for _ in range(3):
            libc.sleep(1000)  # a signal ends one sleep, and Python sees it only between them
    finally:
        libc.sleep(1000)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            time.sleep(0.2)  # two that are pending at once are one
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    how = "at once by a second" if asks else "by"
    assert process.returncode == 143 and said == f"error: stopped {how} SIGTERM\n"


@pytest.mark.parametrize(("saved", "code"), [(True, 143), (False, 1)])
def test_a_run_that_stopped_and_could_not_save_is_an_error(saved, code):
    """No steps: the loop alone, told to stop before the first."""
    stop = Stop()
    stop.agreed = signal.SIGTERM
    run = SimpleNamespace(
        start=SimpleNamespace(state=SimpleNamespace(step=3)),
        total=9,
        progress=SimpleNamespace(update=lambda step: None),
        agreed=lambda stop: True,
        finish=lambda state, step, stopped: saved,
    )
    assert train._loop(run, stop) == code


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
