"""The SLURM script, run: a stand-in `srun` starts real processes, which train, stop, queue again and go on."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers import small_flags
from tests.launch.cases import rendered
from tests.launch.stand_ins import bash, calls, environment, stand_in

FIRST_PORT, PORTS = 65535 - 2**12 + 1, 2**12  # of jax, which takes the port that the job's number gives


def job_id() -> str:
    """One whose port is free."""
    for number in range(os.getpid(), os.getpid() + PORTS):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", FIRST_PORT + number % PORTS))
            except OSError:
                continue
            return str(number)
    raise AssertionError("no free port")


def srun(folder: pathlib.Path) -> None:
    program = pathlib.Path(__file__).with_name("srun.py")
    stand_in(folder, "srun", f'exec {sys.executable} {program} "$@"')


def variables(folder: pathlib.Path) -> dict[str, str]:
    """What sbatch sets; one CPU device a process; programs compiled fast, and kept for the second start."""
    fast = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    fast |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {"SLURM_JOB_ID": job_id(), "SLURM_NTASKS": "2", **fast}


def script(*words: str) -> str:
    return rendered(["slurm", "--topology=h100:2", f"--python={sys.executable}", *words]).files["slurm.sh"]


@pytest.mark.full
def test_it_trains_saves_before_the_time_is_up_and_goes_on(tmp_path):
    srun(tmp_path)
    stand_in(tmp_path, "scontrol")
    flags = small_flags(total_examples="960", log_steps="1", evaluate_percent="None", evaluate_steps="60", evals="{}")
    flags = [flag for flag in flags if not flag.startswith("--config.evals.")]
    text = script("--config=siglip_tiny", "--workdir=workdir", *flags)
    (tmp_path / "slurm.sh").write_text(text)
    metrics, log = tmp_path / "workdir/metrics.jsonl", tmp_path / "log"
    env = environment(tmp_path, **variables(tmp_path))
    with log.open("w") as out:
        job = subprocess.Popen(["bash", "slurm.sh"], cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 180
        while not (metrics.exists() and metrics.read_text()):
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        code = job.wait(timeout=120)
    finally:
        job.kill()
    first = log.read_text()
    assert code == 0 and calls(tmp_path)[-1] == f"scontrol requeue {env['SLURM_JOB_ID']}", first
    assert "2 processes (Slurm)" in first
    (saved,) = [int(path.name) for path in (tmp_path / "workdir/checkpoints").iterdir() if path.name.isdigit()]
    assert 0 < saved < 60

    done = subprocess.run(["bash", "slurm.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"resumed from step {saved}\b", done.stdout + done.stderr)
    assert (tmp_path / "workdir/checkpoints/60").is_dir()
    assert len(calls(tmp_path)) == 3, "a run that ends by itself is not queued again"


@pytest.mark.parametrize(
    ("ends", "code"),
    [("exit 3", 3), ("exit 143", 143), ("kill -KILL $$", 137)],
)
def test_what_was_not_asked_for_is_not_queued_again(ends, code, tmp_path):
    """A failure stays one; a job that is cancelled gets TERM, and stays cancelled."""
    stand_in(tmp_path, "srun", ends)
    stand_in(tmp_path, "scontrol")
    done = bash(tmp_path, script("--config=siglip_tiny"), SLURM_JOB_ID="7")
    assert done.returncode == code
    assert not any(call.startswith("scontrol") for call in calls(tmp_path))


def test_cpus_a_task_reach_srun(tmp_path):
    stand_in(tmp_path, "srun", 'echo "[$SRUN_CPUS_PER_TASK]"')
    text = script("--config=siglip_tiny", "--sbatch=--cpus-per-task=12")
    assert "#SBATCH --cpus-per-task=12\n" in text
    assert bash(tmp_path, text, SLURM_CPUS_PER_TASK="12").stdout == "[12]\n"
