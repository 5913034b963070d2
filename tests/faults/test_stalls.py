"""What hangs is noticed, told with stacks, and ended within the time that was set."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.multi.jobs import ROOT, Job, free_port, losses, run_flags
from tests.test_train import start
from vlm_jax import train
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.errors import UserError
from vlm_jax.health.phases import CHECKPOINTS, COMPILE, DATA, STEPS, Phases
from vlm_jax.health.verdicts import Verdict
from vlm_jax.health.watchdog import Stalls, Watchdog
from vlm_jax.stop import Stop

HEAD = """
import ctypes, os, sys, threading, time
from vlm_jax.health.phases import DATA, STEPS
from vlm_jax.health.watchdog import Stalls, watched
from vlm_jax.processes import Alone, Link
from vlm_jax.processes.hub import Hub
"""


def script(body: str, *arguments: str) -> subprocess.Popen:
    """A process that runs `body`; it imports no jax."""
    text = HEAD + textwrap.dedent(body) + '\nassert "jax" not in sys.modules\n'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_stands_still_is_ended_by_its_own_limit():
    """A quarter of a second for data, one minute for a step: only the first is reached."""
    ends, phases = [], Phases()
    phases.enter(STEPS)
    watchdog = Watchdog(Stalls(data=0.25, step=60, other=60), phases, lambda line, code: ends.append((line, code)))
    time.sleep(0.6)
    assert not ends
    phases.step = 57
    phases.enter(DATA)
    deadline = time.monotonic() + 60
    while not ends and time.monotonic() < deadline:
        time.sleep(0.01)
    watchdog.stop()
    ((line, code),) = ends
    assert "in 'data wait', after step 57: a read hangs" in line and code == 1


@pytest.mark.parametrize("pause, ended", [(1, False), (3, False), (9, True)])
def test_what_moves_is_left_alone(monkeypatch, pause, ended):
    """Batches come after so many looks of the watchdog each, of which four make the limit; a clock that is counted."""
    phases, ends, looks = Phases(), [], []

    class Looks:
        def wait(self, tick):
            looks.append(tick)
            if len(looks) % pause == 0:
                phases.enter(DATA)  # the same phase, begun anew
            return len(looks) > 40

    clock = SimpleNamespace(monotonic=lambda: sum(looks), sleep=lambda seconds: None)
    inline = SimpleNamespace(Event=Looks, Thread=lambda target, **_: SimpleNamespace(start=target))
    for name, stand_in in (("time", clock), ("threading", inline), ("_log", lambda: None)):
        monkeypatch.setattr(f"vlm_jax.health.watchdog.{name}", stand_in)
    phases.enter(DATA)
    Watchdog(Stalls(data=1, step=60, other=60), phases, lambda *end: ends.append(end))
    assert bool(ends) is ended and (len(looks) < 9) is ended


def test_limits_are_of_phases():
    assert Stalls(data=None).limit(DATA) is None and Stalls(other=5).limit(COMPILE) == 5
    with pytest.raises(UserError, match=r"stalls.step=0 must be above zero"):
        Stalls(step=0)


@pytest.mark.parametrize(("verdict", "name"), [(Verdict.STOP, "give_up"), (Verdict.REWIND, "rewind")])
def test_a_dump_and_a_way_back_have_the_time_of_a_checkpoint(verdict, name, monkeypatch):
    """What a step may take is often less than writing one out does."""

    class Done(Exception):
        pass

    def noted(run, *_):
        raise Done(run.phases.at[0])

    monkeypatch.setattr(train.dump if name == "give_up" else train, name, noted)
    phases = Phases()
    phases.enter(STEPS)
    run = SimpleNamespace(
        start=SimpleNamespace(state=SimpleNamespace(step=3)),
        total=9,
        phases=phases,
        progress=SimpleNamespace(update=lambda step: None),
        agreed=lambda stop: False,
        begin=lambda step: None,
        next_batch=lambda: None,
        update=lambda state, batch: (state, {}),
        due_evaluators=lambda step, last: [],
        due_save=lambda step: False,
        judge=lambda metrics, all_of_them: verdict,
    )
    with pytest.raises(Done, match=CHECKPOINTS):
        train._loop(run, Stop())


def test_a_process_ends_with_the_stacks_of_all_its_threads():
    process = script(
        """
        def reading(): time.sleep(1000)
        threading.Thread(target=reading, daemon=True).start()
        with watched(Stalls(data=0.5), Alone().end) as phases, phases.during(DATA):
            reading()
        """
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count("in reading") == 2 and "Start the run again, and it goes on." in said.splitlines()[-1]


def test_a_thread_that_lets_no_other_run_is_ended_too():
    """`PyDLL` keeps the interpreter's lock while the C function sleeps."""
    process = script(
        """
        with watched(Stalls(data=1, step=1, other=1), Alone().end) as phases:
            time.sleep(0.6)  # the watchdog sets its timer
            phases.enter(DATA)
            ctypes.PyDLL(None).sleep(1000)
        """
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "Timeout" in said and "Thread" in said


@pytest.mark.parametrize("reader", ["gone", pytest.param("asleep", marks=pytest.mark.full)])
def test_a_process_ends_though_nobody_reads_what_it_says(reader):
    """As with `2>&1 | tee` where tee has died, or does not read."""
    theirs, ours = os.pipe()
    text = HEAD + textwrap.dedent(
        """
        sys.stdin.readline()
        with watched(Stalls(data=0.25), Alone().end) as phases, phases.during(DATA):
            print("x" * 10**6, flush=sys.argv[1] == "asleep")
            time.sleep(1000)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text, reader],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=ours,
        stderr=ours,
        text=True,
    )
    os.close(ours)
    if reader == "gone":
        os.close(theirs)
    process.communicate("\n", timeout=60)
    assert process.returncode == 1


@pytest.mark.full
def test_a_process_that_was_stopped_for_longer_has_not_stalled():
    process = script(
        """
        with watched(Stalls(data=4, step=4, other=600), Alone().end) as phases, phases.during(DATA):
            print("ready", flush=True)
            time.sleep(2)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


TWO = """
index, port = int(sys.argv[1]), sys.argv[2]
hub = Hub(f"127.0.0.1:{port}", 2, [], 60) if index == 0 else None
link = Link(f"127.0.0.1:{port}", index, 2, [], 60, hub)
with link.together(), watched(Stalls(step=2), link.end) as phases, phases.during(STEPS):
    link.gather("ready")
    print("ready", flush=True)
    while True:
        link.gather(None)
        phases.enter(STEPS)
"""


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="hanging", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.full)])
def test_the_other_process_ends_too(number, lost):
    port = str(free_port())
    both = [script(TWO, str(index), port) for index in range(2)]
    try:
        for process in both:
            assert process.stdout.readline() == "ready\n"
        both[lost].send_signal(number)
        _, said = both[1 - lost].communicate(timeout=60)
        assert both[1 - lost].returncode == 1
        if number == signal.SIGSTOP:
            assert "another process or a device hangs" in said and "in gather" in said
        elif lost == 1:
            assert "error: process 1 is gone (killed?); start the job again" in said
    finally:
        for process in both:
            process.kill()
            process.wait()


# Whole runs

SPOILT = [f"--config={ROOT}/tests/faults/spoilt_tiny.py", "--config.data.prefetch=1"]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_read_that_hangs_ends_the_run_and_its_worker(tmp_path, workers):
    """Record 100 is of the seventh batch. A worker takes its time to start."""
    limit = 60 if workers else 5
    flags = [*SPOILT, f"--config.data.workers={workers}", f"--workdir={tmp_path}/run"]
    process = start([*flags, "--config.data.source.hangs_at=100", f"--config.stalls.data={limit}"])
    worker = worker_of(process) if workers else None
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "nothing has moved for" in said.splitlines()[-1] and "'data wait', after step 6: a read hangs" in said
    assert said.count("in __getitem__") >= 1 and "in next_batch" in said  # the reading thread's stack, and the loop's
    heartbeat = json.loads((tmp_path / "run" / "heartbeats" / "0.json").read_text())
    assert heartbeat["process"] == 0 and heartbeat["pid"] == process.pid and heartbeat["phase"] != "ended"
    assert latest_step(tmp_path / "run") == 4
    deadline = time.monotonic() + 60
    while worker and is_alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def worker_of(process: subprocess.Popen) -> int:
    """The only process that prepares data for it, once there is one."""
    while process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        time.sleep(0.02)
    raise AssertionError(process.stderr.read())


def is_alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.full
def test_a_killed_worker_ends_the_run_and_the_next_goes_on(tmp_path):
    flags = [*SPOILT, f"--workdir={tmp_path}/run", "--config.total_examples=16000", "--config.checkpoint_steps=20"]
    flags += ["--config.data.workers=1"]
    process = start(flags)
    worker = worker_of(process)
    while latest_step(tmp_path / "run") is None:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "worker process 0 of the data was killed by SIGKILL" in said
    assert "Traceback" not in said
    end = latest_step(tmp_path / "run") * 16 + 160
    again = start([*flags, "--allow_config_change", f"--config.total_examples={end}"])
    assert again.wait() == 0, again.stderr.read()
    assert latest_step(tmp_path / "run") == end // 16


@pytest.mark.full
def test_kill_of_one_of_four_ends_all_and_they_finish_when_started_again(launch, tmp_path):
    guards = {"guards__clip": "health.guards.Clip", "guards__spikes": "health.guards.Spikes"}
    guards |= {"guards__clip__window": "8", "guards__spikes__window": "8", "guards__clip__factor": "0.7"}
    whole = launch(4, *run_flags(tmp_path / "whole", **guards), devices=1).done()
    assert whole.text().count("done: 20 steps") == 1
    job: Job = launch(4, *run_flags(tmp_path / "run", **guards), devices=1)
    job.wait_for("step 10/20")
    job.processes[2].kill()
    since = time.monotonic()
    assert job.wait(60) == [1, 1, -signal.SIGKILL, 1]
    print(f"the others ended {time.monotonic() - since:.1f} s after the kill")
    assert "error: process 2 is gone" in job.text(0)
    again = launch(4, *run_flags(tmp_path / "run", **guards), devices=1).done()
    assert "resumed from step 8" in again.text()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    saved = [read_meta(tmp_path / name / "checkpoints" / "20")["guard"] for name in ("run", "whole")]
    assert saved[0] == saved[1] and saved[0]["loss"]["count"] == 20


@pytest.mark.full
def test_one_of_four_that_hangs_ends_the_others_within_the_time_set(launch, tmp_path):
    job: Job = launch(4, *run_flags(tmp_path / "run", stalls__step="10", total_examples="32000"), devices=1)
    job.wait_for("step 10/2000")
    job.processes[2].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    while any(job.processes[i].poll() is None for i in (0, 1, 3)):
        assert time.monotonic() - since < 120, job.tails()
        time.sleep(0.1)
    print(f"the others ended {time.monotonic() - since:.1f} s after it was stopped; 10 were set")
    assert [job.processes[i].returncode for i in (0, 1, 3)] == [1, 1, 1]
    assert "another process or a device hangs" in job.text(0) + job.text(1) + job.text(3)


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
/* The wall clock is an hour ahead, or a day back, and changes its mind every 50 ms; the monotonic one is right. */
static long jump(void) {
  struct timespec t;
  ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(CLOCK_MONOTONIC, &t);
  return (t.tv_nsec / 50000000) % 2 ? 3600 : -86400;
}
int clock_gettime(clockid_t id, struct timespec *t) {
  int r = ((int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime"))(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += jump();
  return r;
}
int gettimeofday(struct timeval *t, void *z) {
  int r = ((int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday"))(t, z);
  t->tv_sec += jump();
  return r;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.mark.full
def test_clocks_that_jump_change_nothing(tmp_path, monkeypatch):
    """The whole process, jax and its threads as well, sees a wall clock that jumps; limits of 20 s would notice."""
    compiler = next(
        (c for c in ("cc", "gcc", "clang") if subprocess.run(["which", c], capture_output=True).stdout), None
    )
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    straight = start([*SPOILT, f"--workdir={tmp_path}/straight"])
    assert straight.wait() == 0, straight.stderr.read()
    monkeypatch.setenv("LD_PRELOAD", str(library))
    times = [subprocess.run(["date", "+%s"], capture_output=True, text=True).stdout for _ in range(40)]
    assert max(map(int, times)) - min(map(int, times)) > 80000  # it does jump
    jumping = start([*SPOILT, f"--workdir={tmp_path}/jumping", "--config.stalls.data=20", "--config.stalls.step=20"])
    assert jumping.wait() == 0, jumping.stderr.read()
    assert losses(tmp_path / "jumping") == losses(tmp_path / "straight")
    seconds = json.loads((tmp_path / "jumping" / "goodput.json").read_text())["seconds"]
    assert min(seconds.values()) >= 0 and sum(seconds.values()) < 600
