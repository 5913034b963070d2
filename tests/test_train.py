"""Runs from the command line to the end: what is written, what is resumed, what survives being killed."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import FAST
from tests.data.sources.tars import png, write_tar
from tests.helpers import small_experiment, small_flags
from vlm_jax import startup, tree
from vlm_jax.checkpoint import Store, latest_step, load_params, read_meta
from vlm_jax.checkpoint.fingerprint import fingerprint
from vlm_jax.evaluate import results
from vlm_jax.main import main

STEPS = 12
ROOT = Path(__file__).parents[1]


def flags(workdir: Path, *more: str, recipe: str = "siglip_tiny", **changes: str) -> list[str]:
    changes = {"checkpoint_steps": "3", "checkpoint_percent": "None", "log_steps": "1", **changes}
    return [f"--config={recipe}", f"--workdir={workdir}", *small_flags(**changes), *more]


def fingerprints(workdir: Path) -> dict[str, str]:
    """Of every array of the last checkpoint: parameters, optimizer, average."""
    return meta(workdir)["fingerprints"]


def meta(workdir: Path) -> dict:
    return read_meta(workdir / "checkpoints" / str(latest_step(workdir)))


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    timed = {"examples_per_s", "step_ms", "data_wait_percent", "eta_s", "tflops"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split("/")[-1] not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run from start to end, uninterrupted, on one device as the killed ones are."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert start(flags(workdir)).wait() == 0
    return workdir


def start(arguments: list[str]) -> subprocess.Popen:
    env = {**os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "vlm_jax.main", *arguments]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of a run on one device."""
    env = {**os.environ, "XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "vlm_jax.main", *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def wait_for_lines(workdir: Path, count: int, process: subprocess.Popen) -> None:
    """Until so many metrics are written."""
    path = workdir / "metrics.jsonl"
    while not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_run_leaves_what_the_readme_says(whole):
    assert latest_step(whole) == STEPS
    names = {name for line in metrics(whole) for name in line}
    wanted = ["loss", "learning_rate", "grad_norm", "param_norm", "update_norm", "logit_scale", "logit_bias"]
    assert {f"train/{name}" for name in wanted} <= names
    assert {"eval/zero_shot_seen/top1", "eval/zero_shot_held_out/top1", "eval/retrieval/image_to_text_r1"} <= names
    assert [line["step"] for line in metrics(whole) if "train/loss" in line] == list(range(1, STEPS + 1))
    page = (whole / "report.html").read_text()
    assert "retrieval" in page and "task.model.image.width" in page
    assert list((whole / "events").iterdir()) and list((whole / "assets").glob("*.model"))
    stored = results.read(whole)
    assert {evaluation.step for evaluation in stored.values()} == {STEPS}
    last = {f"eval/{name}/{key}": v for name, e in stored.items() for key, v in e.metrics.items()}
    written = {name: v for line in metrics(whole) if line["step"] == STEPS for name, v in line.items()}
    assert last and last.items() <= written.items()
    assert stored["retrieval"].rows() and stored["zero_shot_seen"].evaluator["source"]["split"] == "test"


def test_meta_holds_config_data_state_and_preprocessing(whole):
    last = meta(whole)
    assert last["step"] == STEPS and last["stage"] == 0
    assert last["config"]["batch_size"] == 16 and last["config"]["_target"] == "experiment.Experiment"
    assert last["data"]["next_index"] == 16 * STEPS
    assert last["data"]["sources"][0]["length"] == 200
    assert last["preprocessing"]["image"]["size"] == 32
    assert last["environment"]["packages"]["jax"] == jax.__version__ and last["environment"]["devices"] == {"cpu": 1}
    assert last["environment"]["flags"]["XLA_FLAGS"] == FAST and last["milestone"] is False


def check_same(workdir: Path, whole: Path) -> None:
    assert fingerprints(workdir) == fingerprints(whole)
    assert metrics(workdir) == metrics(whole)


def test_killed_at_a_random_step_and_started_again_is_the_same_run(tmp_path, whole):
    """The whole count, in every phase of a run: tests/faults/test_kills.py."""
    rng = random.Random(0)
    process = start(flags(tmp_path))
    wait_for_lines(tmp_path, rng.randint(1, STEPS + 2), process)
    time.sleep(rng.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = start(flags(tmp_path))
    assert again.wait() == 0, again.stderr.read()
    check_same(tmp_path, whole)


@pytest.mark.full
def test_an_interrupt_saves_and_the_same_command_goes_on(tmp_path, whole):
    process = start(flags(tmp_path, checkpoint_steps="100"))
    wait_for_lines(tmp_path, 4, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 128 + signal.SIGINT
    stopped = latest_step(tmp_path)
    assert stopped and 3 <= stopped < STEPS  # the fourth line is the first evaluation's, at step 3
    again = start(flags(tmp_path, checkpoint_steps="100"))
    assert again.wait() == 0, again.stderr.read()
    check_same(tmp_path, whole)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (file,) = [max((tmp_path / "run/checkpoints/12/params").rglob("d/*"), key=lambda p: p.stat().st_size)]
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 64):  # one bit alone may hit an index that a later one replaced: tests/faults
        data[at] ^= 1
    file.write_bytes(bytes(data))
    code, out = finished(flags(tmp_path / "run"))
    assert code == 0 and "resumed from step 9" in out and "warning: " in out and "12" in out
    assert (tmp_path / "run/checkpoints/12.damaged").is_dir()
    check_same(tmp_path / "run", whole)


def test_a_run_that_is_done_stays_as_it_is(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("report.html")}
    again = start(flags(tmp_path / "run"))
    assert again.wait() == 0
    check_same(tmp_path / "run", whole)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_changed_config_is_shown_and_needs_the_flag(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    longer = {"total_examples": str(16 * (STEPS + 1))}
    assert main(flags(tmp_path / "run", **longer)) == 2
    assert "total_examples: 192 -> 208" in capsys.readouterr().err
    assert main(flags(tmp_path / "run", "--allow_config_change", **longer)) == 0
    assert "config change: total_examples: 192 -> 208" in capsys.readouterr().out
    assert latest_step(tmp_path / "run") == STEPS + 1


@pytest.mark.full
def test_another_number_of_workers_is_no_other_config(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    code, out = finished(flags(tmp_path / "run", **{"data.workers": "2"}))
    assert code == 0 and "config change: data.workers: 0 -> 2" in out and "resumed from step 9" in out
    check_same(tmp_path / "run", whole)


MIXED = """
from vlm_jax.config import bind, late
from vlm_jax.configs import siglip_tiny


def get_config(variant=""):
    config = siglip_tiny.get_config()
    part = lambda **options: bind("data.mixture.Part", source=bind("data.sources.shapes.Shapes", size=40), **options)
    squashed = bind("data.image.ImageTransform", size=config.image.get_ref("size"), interpolation="box")
    parts = dict(few=part(image=late("image")), many=part(image=squashed, weight=3))
    config.data.source = bind("data.mixture.Mixture", parts=parts)
    return config
"""


@pytest.mark.full
def test_a_mixture_is_logged_by_source_and_goes_on_with_other_weights(tmp_path, capsys):
    (tmp_path / "mixed.py").write_text(MIXED)
    arguments = flags(tmp_path / "run", recipe=str(tmp_path / "mixed.py"), total_examples="64")
    arguments.remove("--config.data.source.size=200")
    assert main(arguments) == 0
    (last,) = [line for line in metrics(tmp_path / "run") if line["step"] == 4 and "train/loss" in line]
    rows = {name: last[f"train/source/{name}/rows"] for name in ("few", "many")}
    assert abs(rows["few"] - 16) <= 1 and sum(rows.values()) == 64
    assert last["train/source/few/epochs"] == rows["few"] / 40 and last["train/source/few/unreadable"] == 0
    arguments += ["--config.total_examples=96", "--config.data.source.parts.few.weight=3"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert "data.source.parts.few.weight: 1.0 -> 3.0" in capsys.readouterr().err
    assert main([*arguments, "--allow_config_change"]) == 0
    state = meta(tmp_path / "run")["data"]
    assert state["origin"] == {"index": 64, "rows": {name: int(count) for name, count in rows.items()}}
    assert abs(state["rows"]["few"] - rows["few"] - 16) <= 1


def test_a_workdir_is_a_config(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"compilation_cache": null', '"compilation_cache": "theirs"'))
    assert main([f"--config={tmp_path}/run", "--evaluate_only"]) == 0
    out = capsys.readouterr().out
    assert "resumed from step 12" in out and "zero_shot_seen: top1" in out
    assert "sets config.compilation_cache=theirs" in out and jax.config.jax_compilation_cache_dir != "theirs"


@pytest.mark.full
def test_a_dry_run_compares_bits(tmp_path, capsys, monkeypatch):
    """Zeros come back with another sign, which `==` takes for the same."""
    begin = startup.begin

    def restored(plan, store, warn):
        start = begin(plan, store, warn)
        if store.last is None:
            return start
        opt = jax.tree.map(lambda x: jnp.where(x == 0, -x, x), start.state.opt)
        return dataclasses.replace(start, state=start.state.replace(opt=opt))

    monkeypatch.setattr(startup, "begin", restored)
    assert main(flags(tmp_path / "run", "--dry_run", "--config.evals={}")) == 2
    assert "the restored state differs from the saved one in opt/" in capsys.readouterr().err


def test_a_dry_run_does_everything_once_and_keeps_nothing(tmp_path, capsys):
    assert main(flags(tmp_path / "run", "--dry_run")) == 0
    assert "dry run: step, evaluators, save and restore all worked" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_other_devices_restore_the_same_bits(whole, tmp_path, capsys):
    """The run above was made on one device; here are eight, sharded two ways."""
    shutil.copytree(whole, tmp_path / "run")
    sharded = {"mesh__data": "2", "mesh__fsdp": "4", "mesh__min_size": "1"}
    longer = {"total_examples": str(16 * (STEPS + 1)), "checkpoint_steps": "1"}
    assert main(flags(tmp_path / "run", "--allow_config_change", **sharded, **longer)) == 0
    assert "resumed from step 12" in capsys.readouterr().out
    plan = startup.make_plan(small_experiment(tmp_path, **sharded), jax.devices())
    with Store(whole) as store:
        step, items, _ = store.restore_latest(startup.to_items(plan.placed()))
    assert len(items["params"]["image"]["head"]["kernel"].sharding.device_set) == 8
    found = {f"{item}/{name}": mark for item, tree in items.items() for name, mark in fingerprint(tree).items()}
    assert step == 12 and found == fingerprints(whole)


@pytest.mark.full
def test_parameters_start_another_run_and_positions_are_resampled(whole, tmp_path, capsys):
    size = {"image__size": "48", "task__model__image__image_size": "48", "total_examples": "16"}
    small = {f"evals__{e}__source__image_size": "48" for e in ("zero_shot_seen", "zero_shot_held_out", "retrieval")}
    changes = {**size, **small, "data__source__image_size": "48", "optimizer__schedule__warmup_steps": "0"}
    assert main(flags(tmp_path / "run", init_from=str(whole), optimizer__learning_rate="1e-12", **changes)) == 0
    old, new = (tree.flatten(load_params(folder)[0]) for folder in (whole, tmp_path / "run"))
    assert new["image/embed/posemb"].shape == (36, 16) and old["image/embed/posemb"].shape == (16, 16)
    np.testing.assert_allclose(new["text/head/kernel"], old["text/head/kernel"], atol=1e-6)
    capsys.readouterr()
    assert main(flags(tmp_path / "other", init_from=str(whole), task__model__text__out_dim="4",
                      task__model__image__out_dim="4")) == 2  # fmt: skip
    assert "text/head/kernel: (16, 8) where (16, 4) is wanted" in capsys.readouterr().err


@pytest.mark.full
def test_overfitting_one_batch_lowers_its_loss(tmp_path):
    longer = {"total_examples": str(16 * 40), "optimizer__learning_rate": "1e-2"}
    assert finished(flags(tmp_path, overfit_batches="1", **longer))[0] == 0
    losses = [line["train/loss"] for line in metrics(tmp_path) if "train/loss" in line]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.full
def test_a_profile_is_written(tmp_path):
    profile = {"profile__start": "2", "profile__steps": "2"}
    assert finished(flags(tmp_path, profile="experiment.Profile", **profile))[0] == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def parquet(path: Path, broken: tuple[int, ...] = ()) -> None:
    """64 images of two classes; the ones named are no images."""
    import io

    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for i in range(64):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(data, "PNG")
        rows.append(b"<html>" if i in broken else data.getvalue())
    pq.write_table(pa.table({"image": rows, "class_name": ["cat", "dog"] * 32}), path)


@pytest.mark.full
def test_unreadable_images_are_counted_skipped_and_resumed_exactly(tmp_path):
    parquet(tmp_path / "train.parquet", broken=(3, 40))
    parquet(tmp_path / "test.parquet")
    data = {
        "data__source__path": f"{tmp_path}/train.parquet",
        "evals__zero_shot__source__path": f"{tmp_path}/test.parquet",
    }
    small = [f for f in small_flags() if "shapes" not in f and "evals" not in f and "source.size" not in f]

    def arguments(name, *more):
        head = ["--config=siglip_cifar10", f"--workdir={tmp_path}/{name}", "--config.total_epochs=None", *small]
        return [
            *head,
            *(f"--config.{k.replace('__', '.')}={v}" for k, v in data.items()),
            "--config.log_steps=1",
            *more,
        ]

    code, out = finished(arguments("whole"))
    assert code == 0 and "warning: 6 unreadable records" in out  # two of them, in each of three epochs
    lines = [line for line in metrics(tmp_path / "whole") if "train/unreadable" in line]
    assert lines[-1]["train/unreadable"] == 6
    assert "unreadable records were replaced" in (tmp_path / "whole" / "report.html").read_text()
    assert finished(arguments("parts", "--config.checkpoint_steps=5", "--config.checkpoint_percent=None"))[0] == 0
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "12")  # what a kill after step 5 leaves
    assert finished(arguments("parts", "--config.checkpoint_steps=5", "--config.checkpoint_percent=None"))[0] == 0
    assert fingerprints(tmp_path / "parts") == fingerprints(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


CUT_OFF = """
from vlm_jax.config import bind
from vlm_jax.configs import siglip_tiny


def get_config(variant=""):
    config = siglip_tiny.get_config()
    config.data.source = bind("data.sources.webdataset.WebDataset", path={path!r}, damaged="skip", index="beside")
    return config
"""


@pytest.mark.full
def test_what_is_left_out_of_damaged_tars_is_counted_and_named(tmp_path):
    for shard in "01":
        members = [(f"{k:03}.{ext}", data) for k in range(20) for ext, data in (("png", png(k)), ("txt", b"a square"))]
        write_tar(tmp_path / f"{shard}.tar", members)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut_off.py").write_text(CUT_OFF.format(path=str(tmp_path / "{0..2}.tar")))
    arguments = flags(tmp_path / "run", recipe=str(tmp_path / "cut_off.py"), total_examples="32")
    arguments.remove("--config.data.source.size=200")
    code, out = finished(arguments)
    assert code == 0 and out.count("what is damaged is left out, problems: 2") == 1
    assert all(line["train/damaged"] == 2 for line in metrics(tmp_path / "run") if "train/loss" in line)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "2 damaged files, or members of them, were left out" in report
    assert "2.tar: it is not there" in report and re.search(r"1\.tar: [^<]* cut off", report)


def test_other_data_than_the_run_began_with_is_refused(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["source"]["seed"] = 5  # as if the files had changed under the same names
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main(flags(tmp_path / "run", data__source__seed="5")) == 2
    assert "the data is not what this run began with" in capsys.readouterr().err


def test_jax_is_given_back_as_it_was():
    """The runs above must not leave a compilation cache behind for other tests."""
    assert jax.config.jax_compilation_cache_dir in (None, os.environ.get("JAX_COMPILATION_CACHE_DIR"))
