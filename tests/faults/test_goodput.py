"""Where the wall time of a run went, over all its restarts."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.multi.jobs import ROOT
from tests.test_train import start
from vlm_jax.health import phases as names
from vlm_jax.health.goodput import Ledger
from vlm_jax.health.phases import Phases
from vlm_jax.health.pulse import forget_others

SPOILT = f"--config={ROOT}/tests/faults/spoilt_tiny.py"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""

    class Clock:
        now = 1000.0

        def passes(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(names.time, "monotonic", lambda: clock.now)
    return clock


def test_phases_have_no_gaps(clock):
    phases = Phases(began=990.0)
    phases.enter(names.COMPILE)
    clock.passes(5)
    phases.enter(names.STEPS)
    clock.passes(7)
    with phases.during(names.DATA):
        clock.passes(2)
        with phases.during(names.CHECKPOINTS):
            clock.passes(1)
        clock.passes(2)
    clock.passes(3)
    phases.repeating = True
    wanted = {names.START: 10, names.COMPILE: 5, names.STEPS: 7, names.DATA: 4, names.CHECKPOINTS: 1, names.REPEATED: 3}
    assert phases.seconds() == wanted


def test_heartbeats_of_processes_that_are_no_more_are_forgotten(tmp_path):
    for name in ("0.json", "1.json", "2.json", "10.json", "notes.json"):
        (tmp_path / name).write_text("{}")
    forget_others(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"0.json", "1.json", "notes.json"}


def test_the_ledger_goes_on_over_restarts_and_knows_what_is_repeated(clock, tmp_path):
    path = tmp_path / "goodput.json"
    phases = Phases()
    ledger = Ledger(path, phases)
    for step in range(10):
        phases.enter(names.STEPS)
        phases.step, phases.repeating = step, ledger.repeats(step)
        clock.passes(1)
    ledger.write()  # it is killed after this; that its tenth step is done nobody knows
    phases = Phases()
    ledger = Ledger(path, phases, furthest=8)
    clock.passes(5)
    for step in range(6, 12):
        phases.enter(names.STEPS)
        phases.step, phases.repeating = step, ledger.repeats(step)
        clock.passes(2)
    ledger.write()
    found = json.loads(path.read_text())
    assert found["sessions"] == 2 and found["furthest"] == 11
    assert found["seconds"] == {name: 0.0 for name in names.NAMES} | {
        names.START: 5.0,
        names.STEPS: 10.0 + 3 * 2,
        names.REPEATED: 3 * 2.0,
    }
    assert ledger.line() == "goodput 59% of 27s: steps 16s, repeated steps 6s, start-up 5s"
    table = ledger.table()
    assert table.title == "Wall time of 2 sessions, goodput 59%" and ("steps", "16s", "59.3%") in table.rows


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"sessions": "x", "furthest": 1, "seconds": {}}', b"\xff"])
def test_a_tally_that_cannot_be_read_begins_anew(tmp_path, content):
    (tmp_path / "goodput.json").write_bytes(content)
    ledger = Ledger(tmp_path / "goodput.json", Phases())
    ledger.write()
    assert json.loads((tmp_path / "goodput.json").read_text())["sessions"] == 1


PULSE = """
import sys, time
from pathlib import Path
from vlm_jax.health.goodput import Ledger
from vlm_jax.health.phases import DATA, STEPS, Phases
from vlm_jax.health.pulse import Pulse
folder = Path(sys.argv[1])
phases = Phases()
ledger = Ledger(folder / "goodput.json", phases)
Pulse(folder / "heartbeats", 0, phases, ledger, every=0.05)
phases.step = 3
phases.enter(STEPS)
time.sleep(0.5)
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_killed_process_leaves_its_time_and_its_last_heartbeat(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PULSE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads((tmp_path / "goodput.json").read_text())
    assert found["sessions"] == 1 and found["furthest"] == 3 and found["seconds"]["steps"] >= 0.4
    heartbeat = json.loads((tmp_path / "heartbeats" / "0.json").read_text())
    assert (heartbeat["pid"], heartbeat["step"], heartbeat["phase"]) == (process.pid, 3, "steps")


@pytest.mark.full
def test_a_run_that_is_killed_and_finishes_accounts_for_all_its_time(tmp_path):
    flags = [SPOILT, f"--workdir={tmp_path}/run", "--config.stalls.heartbeat=0.2", "--config.total_examples=640"]
    began = time.monotonic()
    process = start(flags)
    path = tmp_path / "run" / "metrics.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= 11):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert before["sessions"] == 1 and before["seconds"]["start-up"] > 0 and before["seconds"]["compile"] > 0
    again = start(flags)
    assert again.wait() == 0, again.stderr.read()
    wall = time.monotonic() - began
    found = json.loads((tmp_path / "run" / "goodput.json").read_text())
    seconds = found["seconds"]
    assert found["sessions"] == 2 and found["furthest"] == 40
    assert 0 < seconds["repeated steps"] < seconds["steps"] and seconds["checkpoints"] > 0
    assert 0.5 * wall < sum(seconds.values()) < wall  # starting the interpreter, and ending it, are not in it
    assert "Wall time of 2 sessions" in (tmp_path / "run" / "report.html").read_text()
