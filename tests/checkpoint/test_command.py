"""`python -m vlm_jax.checkpoint`: tables, exit codes, and nothing deleted that is the last of its kind."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.test_damage import flips_everywhere
from vlm_jax import environment
from vlm_jax.checkpoint import Store
from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.command import main


def items(step: int) -> dict:
    kernel = lambda layer: np.random.default_rng([step, layer]).normal(size=(40, 50)).astype(np.float32)
    params = {"blocks": {f"{layer:02}": {"kernel": jnp.asarray(kernel(layer))} for layer in range(3)}}
    return {"params": params | {"same": jnp.ones(4)}, "opt": {"count": jnp.int32(step)}}


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory) -> Path:
    """Steps 1 to 4, of which 1 is a milestone and 3 is damaged."""
    workdir = tmp_path_factory.mktemp("four")
    with Store(workdir, keep=9) as store:
        for step in (1, 2, 3, 4):
            meta = {"config": {"rate": step / 10}, "milestone": step == 1, "environment": environment.describe()}
            store.save(step, items(step), meta)
    flips_everywhere(workdir / "checkpoints" / "3")
    return workdir


@pytest.fixture
def workdir(four_steps, tmp_path) -> Path:
    return Path(shutil.copytree(four_steps, tmp_path / "run"))


def called(capsys, *arguments) -> tuple[int, list[str]]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert err == "" or code == 2
    return code, (out or err).splitlines()


def left(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_list(workdir, capsys):
    (workdir / "checkpoints" / "5").mkdir()
    (workdir / "checkpoints" / "notes.txt").write_text("mine")
    (workdir / "checkpoints" / "6.damaged.2").mkdir()
    shutil.rmtree(workdir / "checkpoints" / "3" / "meta")
    code, lines = called(capsys, "list", workdir)
    assert code == 0 and lines[0].split() == ["step", "saved", "size", "arrays", "vlm_jax", "commit", "jax", "devices"]
    assert [line.split()[0] for line in lines[1:5]] == ["4", "3", "2", "1"]
    assert lines[2].endswith("damaged: it has no meta") and lines[4].endswith("milestone")
    assert "8 x cpu" in lines[1] and environment.describe()["packages"]["jax"] in lines[1]
    assert lines[5:] == ["set aside as damaged: 6.damaged.2", "no checkpoint: 5", "no checkpoint: notes.txt"]


def test_list_of_one_step(workdir, capsys):
    code, lines = called(capsys, "list", workdir / "checkpoints" / "4")
    assert code == 0 and "step = 4" in lines and "environment.devices.cpu = 8" in lines
    assert any(line.startswith("environment.flags.XLA_FLAGS = ") for line in lines)


def test_verify(workdir, capsys, monkeypatch):
    code, lines = called(capsys, "verify", workdir)
    assert code == 1 and [line.split(":")[0] for line in lines] == ["4", "3", "2", "1"]
    assert "damaged: " in lines[1] and all(": good, 5 arrays, " in line for line in (lines[0], *lines[2:]))
    monkeypatch.chdir(workdir)
    assert called(capsys, "verify", Path("checkpoints") / "4")[0] == 0
    code, lines = called(capsys, "diff", Path("checkpoints") / "1", ".", "--values")
    assert code == 1 and "  opt/count: at most 3 apart, 3 of its norm" in lines
    monkeypatch.chdir("checkpoints/4")
    assert "step = 4" in called(capsys, "list", ".")[1] and called(capsys, "verify", ".")[0] == 0


@pytest.mark.parametrize("half", [False, True], ids=["gone", "going"])
@pytest.mark.parametrize("tool", [["list"], ["verify"], ["prune", "--keep=1"]], ids=lambda tool: tool[0])
def test_a_step_that_a_live_run_deletes_is_left_out(workdir, capsys, monkeypatch, tool, half):
    """Gone after the steps were listed; or its `meta` is, and the rest goes in the next moment."""
    going = workdir / "checkpoints" / "2"
    shutil.rmtree(workdir / "checkpoints" / "3")
    chosen = disk.chosen

    def deleted_since(path):
        folders = chosen(path)
        shutil.rmtree(going / "meta" if half else going)
        return folders

    monkeypatch.setattr(disk, "chosen", deleted_since)
    monkeypatch.setattr(disk.time, "sleep", lambda seconds: shutil.rmtree(going, ignore_errors=True))
    code, lines = called(capsys, tool[0], workdir, *tool[1:])
    steps = [line for line in lines if line[0].isdigit()]
    assert code == 0 and [line.split()[0].strip(":") for line in steps] == ["4", "1"]
    assert not any("damaged" in line for line in lines)


def test_diff(workdir, capsys):
    code, lines = called(capsys, "diff", workdir / "checkpoints" / "1", workdir / "checkpoints" / "2")
    assert code == 1 and "config: rate: 0.1 -> 0.2" in lines and "arrays: 1 are the same, 4 differ" in lines
    assert "  params/blocks/*/kernel (3 arrays): other values" in lines
    code, lines = called(capsys, "diff", workdir / "checkpoints" / "1", workdir, "--values")
    assert code == 1 and "  opt/count: at most 3 apart, 3 of its norm" in lines
    assert called(capsys, "diff", workdir, workdir)[0] == 0
    code, lines = called(capsys, "diff", workdir)  # the last two, of which one is damaged in its arrays alone
    assert code == 1 and lines[0].endswith("/3") and lines[1].endswith("/4")


def test_diff_of_other_arrays(workdir, tmp_path, capsys):
    with Store(tmp_path / "other") as store:
        store.save(4, {"params": {"same": jnp.ones(3)}}, {})
    code, lines = called(capsys, "diff", workdir, tmp_path / "other")
    assert code == 1 and "  params/same: float32[4] -> float32[3]" in lines
    assert "  params/blocks/*/kernel (3 arrays): float32[40,50] -> missing" in lines


def test_no_secret_of_a_url_is_shown(tmp_path, capsys):
    for step in (1, 2):
        url = f"https://host/{step}.tar?sig=0123abcd{step}"
        meta = {"config": {"_target": "not.there.At_all", "path": url, "rates": [0.1]}, "data": {url: {"row": step}}}
        with Store(tmp_path / str(step)) as store:
            store.save(step, {"params": {"same": jnp.ones(3)}}, meta)
    code, lines = called(capsys, "diff", tmp_path / "1", tmp_path / "2")
    assert code == 0 and "config: path: 'https://host/1.tar?sig=***' -> 'https://host/2.tar?sig=***'" in lines
    _, listed = called(capsys, "list", tmp_path / "1" / "checkpoints" / "1")
    assert "data.https://host/1.tar?sig=*** = 1" in listed and "0123abcd" not in " ".join(lines + listed)


def test_prune_keeps_milestones_and_what_is_good(workdir, capsys):
    code, lines = called(capsys, "prune", workdir, "--keep=1", "--dry_run")
    assert code == 0 and left(workdir) == {"1", "2", "3", "4"} and "2: would be deleted" in lines
    assert called(capsys, "prune", workdir, "--keep=2")[0] == 0
    assert left(workdir) == {"1", "2", "3", "4"}  # 3 is damaged, and does not count
    flips_everywhere(workdir / "checkpoints" / "4")
    code, lines = called(capsys, "prune", workdir, "--keep=1", "--damaged")
    assert code == 0 and left(workdir) == {"1", "2"} and "2: good, stays" in lines and "1: a milestone, stays" in lines


def test_prune_deletes_nothing_where_nothing_is_good(workdir, capsys):
    for step in "124":
        shutil.rmtree(workdir / "checkpoints" / step / "meta")
    code, lines = called(capsys, "prune", workdir, "--keep=1", "--damaged")
    assert code == 1 and lines[-1] == "no step is good; nothing is deleted" and left(workdir) == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["list", "{}/nowhere"], "nowhere is no workdir with checkpoints"),
        (["prune", "{}"], "--keep"),
        (["prune", "{}", "--keep=0"], "--keep=0 must be at least 1"),
        (["prune", "{}/checkpoints/4", "--keep=1"], "is one checkpoint; name the workdir"),
        (["diff", "{}/checkpoints/4"], "is one checkpoint; name another"),
        (["lst", "{}"], "invalid choice: 'lst'"),
    ],
)
def test_mistakes(four_steps, capsys, arguments, message):
    code, lines = called(capsys, *(argument.format(four_steps) for argument in arguments))
    assert code == 2 and len(lines) == 1 and message in lines[0]
