"""kill -9 at random moments: every restart goes on, the end is that of a run that was never killed, nothing is left."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults import runs
from tests.faults.program import PHASES


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("whole")
    runs.prepare(folder)
    code, lines = runs.Running(runs.flags(folder)).done()
    assert code == 0, "\n".join(lines)
    return folder


def one_round(folder: Path, rng: random.Random, phases: list[str]) -> list[str]:
    """Kills a run in each phase in turn, until it ends by itself; returns where it was killed."""
    runs.prepare(folder)
    killed = []
    for phase in phases:
        if phase == "index":  # built anew
            for path in (folder / "data").glob("*.index"):
                path.unlink()
        run = runs.Running(runs.flags(folder))
        if run.reaches(f"@{phase}", {"step": rng.randint(1, 6), "save": rng.randint(1, 3)}.get(phase, 1)):
            time.sleep(rng.uniform(0, 0.25))
            run.killed()
        code, lines = run.done()
        assert code in (0, -signal.SIGKILL), "\n".join(lines)
        if code == 0:
            return killed
        killed.append(phase)
    code, lines = runs.Running(runs.flags(folder)).done()
    assert code == 0, "\n".join(lines)
    return killed


def kill(folder: Path, whole: Path, count: int, seed: int) -> None:
    rng, killed = random.Random(seed), []
    while len(killed) < count:
        phases = [rng.choice(PHASES) for _ in range(min(8, count - len(killed)))]
        killed += one_round(folder, rng, phases)
        assert runs.results(folder / "run") == runs.results(whole / "run")
        found, wanted = (runs.files(path / "run", path / "data") for path in (folder, whole))
        assert found == wanted
        shutil.rmtree(folder)
    print(f"{count} kills: {', '.join(f'{killed.count(phase)} during {phase}' for phase in PHASES)}")


@pytest.mark.full
@pytest.mark.parametrize("count", [10, 200])
def test_killed_anywhere(tmp_path, whole, count):
    """A single kill is in tests/test_train.py."""
    kill(tmp_path / "killed", whole, count, seed=count)
