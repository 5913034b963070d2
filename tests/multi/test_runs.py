"""Whole runs of several processes from the command line: one's losses, one's files, stopped and ended together."""

import json
import shutil
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.multi.jobs import Job, losses, metrics, run_flags
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.evaluate import results

STEPS = 20


def fingerprints(workdir) -> dict[str, str]:
    return read_meta(workdir / "checkpoints" / str(latest_step(workdir)))["fingerprints"]


def stop_one(job: Job, number: int) -> None:
    """Asks process 1 to stop when the first steps are done; both are to stop and save."""
    job.wait_for("step 3/20")
    job.processes[1].send_signal(number)
    job.done(128 + number)


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """A run of two processes from start to end, and its output."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, launch(2, *run_flags(workdir)).done()


@pytest.mark.full
def test_a_signal_to_one_stops_both_and_they_go_on_exactly(whole, launch):
    """One test for a run's files and its stop, since the two share the run."""
    straight, job = whole
    only_the_first_speaks_and_writes(straight, job)
    workdir = straight.parent / "stopped"
    job = launch(2, *run_flags(workdir))
    stop_one(job, signal.SIGTERM)
    stopped = latest_step(workdir)
    assert 3 < stopped < STEPS and f"stopped after step {stopped}, saved" in job.text()
    again = launch(2, *run_flags(workdir)).done()
    assert f"resumed from step {stopped}" in again.text()
    assert fingerprints(workdir) == fingerprints(straight) and metrics(workdir) == metrics(straight)


def only_the_first_speaks_and_writes(workdir, job):
    assert "2 processes (flags), the first at 127.0.0.1:" in job.text(0) and "done: 20 steps" in job.text(0)
    assert [line for line in job.text(1).splitlines() if not line.startswith("[Gloo]")] == []
    assert len(list((workdir / "events").iterdir())) == 1 and len(list((workdir / "assets").glob("*.model"))) == 1
    steps = [line["step"] for line in metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, STEPS + 1)) and latest_step(workdir) == STEPS
    assert json.loads((workdir / "config.json").read_text())["total_examples"] == 320


@pytest.mark.full
def test_two_processes_have_the_losses_of_one(whole, launch):
    workdir, _ = whole
    alone = workdir.parent / "alone"
    launch(1, *run_flags(alone), devices=4).done()
    assert losses(workdir) == pytest.approx(losses(alone), rel=0, abs=1e-4) and len(losses(alone)) == STEPS
    names = [{name for line in metrics(run) for name in line} for run in (workdir, alone)]
    assert names[0] == names[1]


def test_an_error_of_one_process_ends_both_with_one_line(launch, tmp_path):
    """The data lies where process 0 is started, and not where process 1 is."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    pq.write_table(pa.table({"image": [b"x"], "class_name": ["cat"]}), folders[0] / "train.parquet")
    data = ["--config.data.source.path=train.parquet", f"--config.evals.zero_shot.source.path={folders[0]}/*.parquet"]
    data.append("--config.optimizer.schedule.warmup_steps=0")
    job = launch(2, "vlm_jax.main", "--config=siglip_cifar10", f"--workdir={tmp_path}/w", *data, folders=folders)
    job.done(2)
    (line,) = [line for index in (0, 1) for line in job.text(index).splitlines() if "error" in line]
    assert line.startswith("error: process 1: ") and "train.parquet" in line
    assert "Traceback" not in job.text(0) + job.text(1)


@pytest.mark.full
def test_a_killed_process_ends_the_others(launch, tmp_path):
    job = launch(2, *run_flags(tmp_path / "run", total_examples="32000"))
    job.wait_for("step 3/2000")
    job.processes[1].kill()
    assert job.wait(30) == [1, -signal.SIGKILL]
    assert "error: process 1 is gone" in job.text(0) and "Traceback" not in job.text(0)


@pytest.mark.full
def test_both_signals_and_a_stop_of_every_process_at_once(whole, launch, tmp_path):
    """As Slurm does it: all are told, and none takes its signal for a second one."""
    straight, _ = whole
    job = launch(2, *run_flags(tmp_path / "run"))
    job.wait_for("step 3/20")
    for process in job.processes:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    job.done(128 + signal.SIGINT)
    launch(4, *run_flags(tmp_path / "run"), devices=1).done()
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), rel=0, abs=1e-4)


@pytest.mark.full
def test_four_processes_go_on_from_two(whole, launch, tmp_path):
    straight, _ = whole
    shutil.copytree(straight, tmp_path / "run")
    for step in (16, STEPS):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    job = launch(4, *run_flags(tmp_path / "run", "--allow_config_change"), devices=1).done()
    assert "resumed from step 8" in job.text()
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), rel=0, abs=1e-4)


@pytest.mark.full
def test_evaluations_are_those_of_one_process(whole, launch, tmp_path):
    straight, _ = whole
    shutil.copytree(straight, tmp_path / "two")
    shutil.copytree(straight, tmp_path / "one")
    job = launch(2, "vlm_jax.main", f"--config={tmp_path}/two", "--evaluate_only").done()
    launch(1, "vlm_jax.main", f"--config={tmp_path}/one", "--evaluate_only", devices=1).done()
    assert "resumed from step 20" in job.text() and "zero_shot_seen: top1" in job.text()
    two, one = (metrics(tmp_path / name)[-3:] for name in ("two", "one"))
    for found, wanted in zip(two, one):
        assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.full
def test_every_kind_of_evaluator_gives_what_it_gives_one_process(whole, launch, tmp_path):
    straight, _ = whole
    recipe = tmp_path / "suite.py"
    recipe.write_text(
        f"""
from vlm_jax import config as configs
from vlm_jax.evaluate import suite


def get_config(variant=""):
    config = configs.load({str(straight)!r})
    config.init_from = {str(straight)!r}
    config.evals = suite.get_config().evals
    for name, node in config.evals.items():
        for part in node.get("parts", {{"": node}}).values():
            part.source.get("shapes", part.source).size = 60
    return config
"""
    )
    for folder, processes, options in (("two", 2, {}), ("one", 1, {"devices": 1})):
        flags = (f"--config={recipe}", f"--workdir={tmp_path / folder}", "--evaluate_only")
        launch(processes, "vlm_jax.main", *flags, **options).done()
    two, one = (results.read(tmp_path / name) for name in ("two", "one"))
    assert len(one) == 10 and list(two) == list(one)
    for name in one:
        assert two[name].metrics == pytest.approx(one[name].metrics, abs=1e-6), name


@pytest.mark.full
def test_a_dry_run_leaves_nothing(launch, tmp_path):
    job = launch(2, *run_flags(tmp_path / "a" / "run", "--dry_run", compilation_cache="None")).done()
    assert "dry run: step, evaluators, save and restore all worked" in job.text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_one_process_traces(launch, tmp_path):
    profile = {"profile": "experiment.Profile", "profile__start": "2", "profile__steps": "2"}
    launch(2, *run_flags(tmp_path / "run", **profile)).done()
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.full
def test_unreadable_records_of_all_processes_are_counted_once(launch, tmp_path):
    from tests.test_train import parquet

    parquet(tmp_path / "train.parquet", broken=(3, 40))
    parquet(tmp_path / "test.parquet")
    data = {
        "data__source__path": f"{tmp_path}/train.parquet",
        "evals__zero_shot__source__path": f"{tmp_path}/test.parquet",
        "total_epochs": "None",
    }
    flags = [f for f in run_flags(tmp_path / "run", **data) if "shapes" not in f and "source.size" not in f]
    flags = [f.replace("siglip_tiny", "siglip_cifar10") for f in flags if "evals.zero_shot_" not in f]
    flags = [f for f in flags if "evals.retrieval" not in f]
    around = ["--config.mesh.tensor=2", "--config.mesh.rules=(('.*/fc1/kernel','-,tensor'),)"]
    job = launch(2, *flags, *around).done()
    last = [line for line in metrics(tmp_path / "run") if "train/unreadable" in line][-1]
    assert last["train/unreadable"] == 10  # two of them, in each of five epochs
    assert "warning: 10 unreadable records" in job.text()
    meta = read_meta(tmp_path / "run" / "checkpoints" / "20")
    assert meta["data"]["unreadable"] == 10 and len(meta["data"]["unreadable_first"]) == 2
