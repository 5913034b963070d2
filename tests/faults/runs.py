"""Small runs in processes of their own, over tars whose index they build, and what is compared of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import FAST
from tests.data.sources.tars import png, write_tar
from tests.helpers import small_flags
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.report import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 12
RECIPE = """
from vlm_jax.config import bind
from vlm_jax.configs import siglip_tiny


def get_config(variant=""):
    config = siglip_tiny.get_config()
    config.data.source = bind("data.sources.webdataset.WebDataset", path={path!r}, index="beside")
    return config
"""
# What depends on the clock.
CLOCKED = {"examples_per_s", "step_ms", "data_wait_percent", "eta_s", "tflops"}


class Running:
    """A run that is under way; its output is read line by line."""

    def __init__(self, arguments: list[str]):
        env = {**os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.faults.program", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        self.process, self.lines = subprocess.Popen(command, env=env, cwd=ROOT, **pipes), []

    def reaches(self, text: str, count: int = 1) -> bool:
        """Reads on until `count` lines begin with `text`; False where the run ends before."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            count -= line.startswith(text)
            if not count:
                return True
        return False

    def done(self) -> tuple[int, list[str]]:
        """Exit code and output, when it has ended."""
        self.reaches("no line begins so")
        return self.process.wait(), self.lines

    def killed(self) -> None:
        self.process.kill()
        self.done()


def prepare(folder: Path) -> None:
    """Data and a recipe for `flags`."""
    for shard in "01":
        members = [(f"{k:03}.{ext}", data) for k in range(40) for ext, data in (("png", png(k)), ("txt", b"a square"))]
        write_tar(folder / "data" / f"{shard}.tar", members)
    (folder / "tars.py").write_text(RECIPE.format(path=str(folder / "data" / "{0..1}.tar")))


def flags(folder: Path, name: str = "run", **changes: str) -> list[str]:
    """The arguments of a run over the data of `folder`, of 12 steps."""
    changes = {
        "checkpoint_steps": "2",
        "checkpoint_percent": "None",
        "evaluate_steps": "4",
        "evaluate_percent": "None",
        "log_steps": "1",
        "compilation_cache": str(folder.parent / "compiled"),
        **changes,
    }
    small = [flag for flag in small_flags(**changes) if not flag.startswith("--config.data.source.size=")]
    return [f"--config={folder / 'tars.py'}", f"--workdir={folder / name}", *small]


def results(workdir: Path) -> tuple[dict[str, str], list[dict]]:
    """The fingerprints of the last checkpoint, and the metrics without what depends on the clock."""
    marks = read_meta(workdir / "checkpoints" / str(latest_step(workdir)))["fingerprints"]
    lines = read_metrics(workdir / "metrics.jsonl")
    return marks, [{k: v for k, v in line.items() if k.split("/")[-1] not in CLOCKED} for line in lines]


def files(*folders: Path) -> set[str]:
    """All files below folders but TensorBoard's, of which every start makes one, and those that hold arrays."""
    found = [path.relative_to(folder) for folder in folders for path in folder.rglob("*") if path.is_file()]
    arrays = lambda path: "d" in path.parts or any(part.startswith("ocdbt.") for part in path.parts)
    return {str(path) for path in found if path.parts[0] != "events" and not arrays(path)}
