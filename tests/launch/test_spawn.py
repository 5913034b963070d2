"""Processes of one machine: they start together, are told of a stop together, and end together."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from tests.launch.cases import CASES, rendered

PROGRAM = """
import os, signal, sys, time
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
index = int(flags["process_id"])
print(index, flags["num_processes"], flags["coordinator"], os.environ.get("CUDA_VISIBLE_DEVICES"),
      os.environ.get("JAX_PLATFORMS"), flush=True)
if sys.argv[1] == "--fail" and index == 1:
    sys.exit(5)
if sys.argv[1] == "--killed" and index == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] != "--end":
    def stop(number, frame):
        print("told", index, flush=True)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print("ready", flush=True)
    time.sleep(60)
"""


def start(folder: pathlib.Path, how: str, *, device: str = "--cpu", count: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "vlm_jax.launch.spawn", f"--count={count}", device, f"--logs={folder}", "--"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, sys.executable, "-c", PROGRAM, how], **pipes)


def wait_for(path: pathlib.Path, text: str) -> None:
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {text!r} in {path}")


def test_each_has_its_number_its_device_and_its_log(tmp_path):
    out, err = start(tmp_path, "--end", device="--gpus", count=3).communicate(timeout=60)
    lines = [out.split(), *((tmp_path / f"process-{i}.log").read_text().split() for i in (1, 2))]
    assert [line[:2] for line in lines] == [["0", "3"], ["1", "3"], ["2", "3"]], err
    assert len({line[2] for line in lines}) == 1 and lines[0][2].startswith("127.0.0.1:")
    assert [line[3] for line in lines] == ["0", "1", "2"]


def test_processes_of_a_cpu_see_one_device(tmp_path):
    """Here XLA_FLAGS asks for eight; between processes that would be eight each."""
    show = "import os; print(os.environ['JAX_PLATFORMS'], os.environ['XLA_FLAGS'])"
    command = [sys.executable, "-m", "vlm_jax.launch.spawn", "--count=1", "--cpu", f"--logs={tmp_path}", "--"]
    env = {**os.environ, "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=8"}
    out = subprocess.run([*command, sys.executable, "-c", show], env=env, capture_output=True, text=True, timeout=60)
    assert out.stdout.split() == ["cpu", "--xla_a=1"], out.stderr


def test_one_failure_ends_all(tmp_path):
    process = start(tmp_path, "--fail")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert err == f"process 1 ended with exit code 5; see {tmp_path}/process-1.log\n"


def test_a_killed_process_is_a_failure(tmp_path):
    process = start(tmp_path, "--killed")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and err == "process 0 ended with exit code 137\n"


def test_a_stop_reaches_all_once(tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(tmp_path, "--wait")
        process.stdout.readline()
        assert process.stdout.readline() == "ready\n"
        wait_for(tmp_path / "process-1.log", "ready")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (128 + number, "told 0\n", "")
        assert (tmp_path / "process-1.log").read_text().count("told 1") == 1


def test_the_command_of_the_local_target():
    (command,) = rendered(CASES["local_gpu"]).commands
    assert command[3:6] == ("--count=8", "--gpus", "--logs=launches/siglip-b16-full")
    assert command[command.index("--") + 1 :][:3] == ("python", "-m", "vlm_jax.main")
