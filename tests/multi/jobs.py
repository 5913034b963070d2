"""Real processes on loopback: each with an output of its own, all of them gone in the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import FAST
from tests.helpers import small_flags
from vlm_jax.report import read_metrics

ROOT = Path(__file__).parents[2]
CLOCKED = {"examples_per_s", "step_ms", "data_wait_percent", "eta_s", "tflops"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Job:
    """`count` processes of one command, told apart by their flags."""

    def __init__(self, folder: Path, count: int, *command: str, devices: int = 2, folders: list[Path] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"process-{index}.txt" for index in range(count)]
        flags = f"{FAST} --xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        env.pop("JAX_CPU_ENABLE_ASYNC_DISPATCH", None)  # as a user has it
        port, self.processes = free_port(), []
        for index, output in enumerate(self.outputs):
            told = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
            with open(output, "wb") as file:
                line = [sys.executable, "-m", *command, *(told if count > 1 else [])]
                where = folders[index] if folders else ROOT
                self.processes.append(subprocess.Popen(line, cwd=where, env=env, stdout=file, stderr=file))

    def text(self, index: int = 0) -> str:
        return self.outputs[index].read_text(errors="replace")

    def tails(self) -> str:
        return "\n".join(f"--- process {i}\n{self.text(i)[-3000:]}" for i in range(len(self.processes)))

    def wait(self, seconds: float = 400) -> list[int]:
        """The exit codes; fails with the ends of all outputs where it takes longer."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.tails()}") from None

    def done(self, code: int = 0, seconds: float = 400) -> Job:
        """Waits; fails with the ends of all outputs where a process exits with another code."""
        codes = self.wait(seconds)
        assert codes == [code] * len(codes), f"{codes}\n{self.tails()}"
        return self

    def wait_for(self, text: str, seconds: float = 400) -> None:
        """Until process 0 has said `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < deadline and self.processes[0].poll() is None, f"no {text!r}\n{self.tails()}"
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def run_flags(workdir: Path, *more: str, **changes: str) -> list[str]:
    """The arguments of a small run of 20 steps, logged at each, with one evaluator."""
    changes = {
        "total_examples": "320",
        "log_steps": "1",
        "checkpoint_steps": "8",
        "checkpoint_percent": "None",
        "evaluate_percent": "50",
        "optimizer__eps": "1e-4",  # what is zero but for rounding then moves by nothing
        "compilation_cache": str(workdir.parent / "compiled"),
        **changes,
    }
    return ["vlm_jax.main", "--config=siglip_tiny", f"--workdir={workdir}", *small_flags(**changes), *more]


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k.split("/")[-1] not in CLOCKED} for line in lines]


def losses(workdir: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(workdir) if "train/loss" in line]
