"""What `--dry_run` prints, word for word. `python tests/launch/test_golden.py` writes the files anew."""

import contextlib
import io
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.launch.cases import CASES
from vlm_jax.launch.command import main

GOLDEN = pathlib.Path(__file__).parent / "golden"


def dry_run(name: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*CASES[name], "--dry_run"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_golden(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run(name) == (GOLDEN / f"{name}.txt").read_text()
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(dry_run(case))
