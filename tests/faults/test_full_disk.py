"""A disk that fills while a run saves: it is told, training goes on, and with room again nothing is missing."""

import errno
import subprocess
from pathlib import Path

import pytest

from tests.faults import runs


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 8 MB, where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(file: Path) -> None:
    """Takes all the room there is."""
    with open(file, "wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while filler.write(b"x" * size):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


@pytest.mark.full
def test_a_disk_that_fills_and_is_cleared(tmp_path, small_disk):
    runs.prepare(tmp_path)
    code, lines = runs.Running(runs.flags(tmp_path, "whole")).done()
    assert code == 0, "\n".join(lines)
    (tmp_path / "run").symlink_to(small_disk)
    run = runs.Running(runs.flags(tmp_path))
    assert run.reaches("@save", 2)
    fill(small_disk / "filler")
    assert run.reaches("warning: checkpoint"), "\n".join(run.lines)
    assert "could not be saved (" in run.lines[-1] and "training goes on, the last checkpoint is " in run.lines[-1]
    assert "\n" not in run.lines[-1] and len(run.lines[-1]) < 300
    (small_disk / "filler").unlink()
    code, lines = run.done()
    assert code == 0, "\n".join(lines)
    assert runs.results(tmp_path / "run") == runs.results(tmp_path / "whole")


@pytest.mark.full
def test_a_disk_that_stays_full(tmp_path, small_disk):
    """The run goes on to its end, says what is missing, and fails; the next one goes on from what was saved."""
    runs.prepare(tmp_path)
    (tmp_path / "run").symlink_to(small_disk)
    run = runs.Running(runs.flags(tmp_path))
    assert run.reaches("@save", 2)
    fill(small_disk / "filler")
    code, lines = run.done()
    assert code == 1 and any(line.startswith("error: step 12 is not saved") for line in lines), "\n".join(lines)
    (small_disk / "filler").unlink()
    code, lines = runs.Running(runs.flags(tmp_path)).done()
    assert code == 0 and any("resumed from step " in line for line in lines), "\n".join(lines)
    code, lines = runs.Running(runs.flags(tmp_path, "whole")).done()
    assert runs.results(tmp_path / "run") == runs.results(tmp_path / "whole")
