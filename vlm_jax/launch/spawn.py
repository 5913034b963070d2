"""`python -m vlm_jax.launch.spawn`: N processes of one program on this machine, which live and die together."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes of a run that was told to stop
GRACE = 30  # seconds between asking the others to end and ending them


def environment(index: int, *, cpu: bool, gpus: bool) -> dict[str, str]:
    """The environment of one process, which sees one device."""
    env = dict(os.environ)
    if cpu:
        env["JAX_PLATFORMS"] = "cpu"
        flags = env.get("XLA_FLAGS", "").split()
        env["XLA_FLAGS"] = " ".join(f for f in flags if "host_platform_device_count" not in f)
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = str(index)
    return env


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(program: list[str], count: int, *, cpu: bool, gpus: bool, logs: Path) -> int:
    """Starts `count` processes; returns the exit code of the first that fails, 0 where none does.

    SIGINT and SIGTERM are passed on to all, once each time they come.
    """
    port = free_port()
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen] = []
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda number, _frame: _send(processes, number))
    try:
        for index in range(count):
            flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
            log = None if index == 0 else (logs / f"process-{index}.log").open("w")
            env = environment(index, cpu=cpu, gpus=gpus)
            # A session of its own: the terminal's Ctrl-C reaches it through here, and not twice.
            processes.append(
                subprocess.Popen([*program, *flags], env=env, stdout=log, stderr=log, start_new_session=True)
            )
            if log:
                log.close()
        return _wait(processes, logs)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _wait(processes: list[subprocess.Popen], logs: Path) -> int:
    """Until all have ended; when one fails, the others are asked to end, and after `GRACE` seconds no longer asked.

    One that ended because it was told to is no failure: the others were told too, and may still be saving.
    """
    code, deadline = 0, None
    while True:
        codes = [process.poll() for process in processes]
        ended = [(index, one if one > 0 else 128 - one) for index, one in enumerate(codes) if one]
        failed = [(index, one) for index, one in ended if one not in STOPPED]
        if failed and deadline is None:
            (index, code), deadline = failed[0], time.monotonic() + GRACE
            where = f"; see {logs / f'process-{index}.log'}" if index else ""
            print(f"process {index} ended with exit code {code}{where}", file=sys.stderr)
            _send(processes, signal.SIGTERM)
        if None not in codes or (deadline is not None and time.monotonic() > deadline):
            return code or max((one for _, one in ended), default=0)
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.launch.spawn", allow_abbrev=False)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("program", nargs="+")
    flags = parser.parse_args()
    return run(flags.program, flags.count, cpu=flags.cpu, gpus=flags.gpus, logs=flags.logs)


if __name__ == "__main__":
    sys.exit(main())
