"""Recipes in stages: what each changes, where it starts, and that they run, resume and are not done twice."""

import json
import os
import signal

import pytest

from vlm_jax import config as configs
from vlm_jax import main, stages, train
from vlm_jax.checkpoint import load_params
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment

RECIPE = """
from vlm_jax.configs import siglip_tiny

def get_config(variant=""):
    config = siglip_tiny.get_config("short")
    config.total_examples = 6 * 64
    config.optimizer.schedule.warmup_steps = 1
    config.evals = {}
    config.compilation_cache = None
    config.data.source.size = 256
    config.task.model.image.depth = config.task.model.text.depth = 1
    config.stages = dict(
        b_tuning=dict(total_examples=4 * 64, optimizer=dict(learning_rate=1e-4)),
        a_towers=dict(optimizer=dict(freeze=("image/blocks/.*",)), data=dict(source=dict(seed=1))),
    )
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "staged.py"
    path.write_text(RECIPE)
    return str(path)


def test_a_stage_is_the_recipe_with_its_changes(recipe):
    config = configs.load(recipe)
    assert stages.names(config) == ("a_towers", "b_tuning")
    first, second = (stages.of(config, name) for name in stages.names(config))
    assert first.optimizer.freeze == ("image/blocks/.*",) and second.optimizer.learning_rate == 1e-4
    assert first.data.source.seed == 1 and second.data.source.get("seed", 0) == 0
    assert first.data.source.size == second.data.source.size == 256
    assert (first.total_examples, second.total_examples) == (384, 256)
    assert not first.stages and stages.names(config)  # the recipe is as it was


def test_a_component_that_is_bound_anew_takes_the_place_of_the_other(recipe):
    config = configs.load(recipe)
    config.stages.b_tuning.data = dict(source=configs.bind("data.sources.folder.Folder", path="images"))
    source = stages.of(config, "b_tuning").data.source
    assert source.path == "images" and "size" not in source


def test_what_no_component_has(recipe):
    config = configs.load(recipe)
    config.stages.b_tuning.optimizer = dict(frozen=())
    with pytest.raises(UserError, match=r"stage b_tuning.*no parameter 'frozen'; did you mean 'freeze'"):
        stages.of(config, "b_tuning")
    with pytest.raises(UserError, match=r"no stage .b_tunin.: did you mean"):
        stages.of(config, "b_tunin")


def test_an_evaluator_that_the_recipe_has_not_cannot_be_changed(recipe, tmp_path):
    config = configs.load(recipe)
    config.stages.b_tuning.evals = dict(questions=dict(source=dict(described=True)))
    with pytest.raises(UserError, match=r"^config\.evals\.questions is no evaluator, but source of one"):
        open_experiment(stages.of(config, "b_tuning"), tmp_path / "assets")


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.full
def test_stages_run_in_order_and_once(recipe, tmp_path, capsys):
    workdir = tmp_path / "run"
    argv = [f"--config={recipe}", f"--workdir={workdir}"]
    assert main.main([*argv, "--stage=a_towers"]) == 0  # as if the run had been stopped after it
    assert not (workdir / "b_tuning").exists()
    before, _ = load_params(workdir / "a_towers")
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert max(steps(workdir / "a_towers")) == 6 and max(steps(workdir / "b_tuning")) == 4
    second = configs.from_json((workdir / "b_tuning" / "config.json").read_text(), "config.json")
    assert second["init_from"] == str(workdir / "a_towers")
    record = lambda name: json.loads((workdir / name / "assets" / "tokenizer.json").read_text())
    tokenizers = [record(name)["file"] for name in ("a_towers", "b_tuning")]
    assert tokenizers[0] == tokenizers[1]
    after, meta = load_params(workdir / "a_towers")
    assert meta["step"] == 6 and (before["logit_scale"] == after["logit_scale"]).all()
    assert f"parameters from {workdir / 'a_towers'}, step 6" in said


def test_a_run_from_before_there_were_stages_is_a_config_still(recipe):
    config = stages.of(configs.load(recipe), "a_towers")
    old = json.loads(configs.to_json(configs.fill(config)))
    old["stages"] = []
    again = configs.from_json(json.dumps(old), "config.json")
    assert not stages.names(again) and not configs.diff(again, configs.fill(config))


def test_a_signal_while_a_stage_is_saved_keeps_the_next_from_starting(recipe, tmp_path, capsys, monkeypatch):
    begun = []

    def told_at_its_end(experiment, config, workdir, *rest):
        begun.append(workdir.name)
        with rest[-1].only_asked():
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(train, "train", told_at_its_end)
    assert main.main([f"--config={recipe}", f"--workdir={tmp_path}/w"]) == 128 + signal.SIGTERM
    assert begun == ["a_towers"] and "stopped before stage b_tuning" in capsys.readouterr().out
