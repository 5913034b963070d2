"""Recipes of texts and images as tokens: their rows are what their tasks read, and they run from the command line."""

import numpy as np
import pytest

import vlm_jax
from vlm_jax import config as configs
from vlm_jax.experiment import open_experiment
from vlm_jax.main import main

from .test_autoencoding_recipes import run

SPECS = ("chameleon_tiny:short", "cm3_tiny:short", "chameleon_7b:smoke")


@pytest.mark.parametrize("spec", [pytest.param(s, marks=pytest.mark.full) if "7b" in s else s for s in SPECS])
def test_rows_are_what_the_task_reads(tmp_path, spec):
    experiment = open_experiment(configs.load(spec), tmp_path / "assets")
    ids, count = experiment.fusion.vocabulary, experiment.batch_size
    batch = next(experiment.data.batches(seed=0, batch_size=count, rows=np.arange(count)))
    shapes = {name: array.shape for name, array in batch.items() if name != "example_id"}
    assert shapes == {name: leaf.shape for name, leaf in experiment.task.batch_spec(count).items()}
    assert batch["text"].max() == ids.first_code < ids.size == experiment.task.model.vocab_size
    assert (batch["text"] == ids.break_id).any() == ("cm3" in spec)
    assert ids.sentinels == 2 * ("cm3" in spec)
    assert not ids.sentinels or (batch["text"] == ids.sentinel(0)).any()
    assert (batch["text"] == ids.image_begin).any() == ("cm3" not in spec)


def test_the_small_decoder_takes_the_tokenizer_that_its_recipe_names():
    config, tokenizer = configs.load("chameleon_tiny"), configs.load("fsq_tiny:shapes")
    assert config.init_from.tokenizer == "workdirs/fsq_tiny-shapes"
    assert configs.build(config.task.model.tokenizer) == configs.build(tokenizer.task.model)


@pytest.mark.full
@pytest.mark.parametrize("spec", SPECS)
def test_recipes_run(tmp_path, spec):
    found = run(tmp_path / "run", f"--config={spec}")
    assert found["train/skipped"] == 0 and found["train/loss"] < 7.1  # log(1262), that of the bytes, is 7.14
    if "tiny" in spec:
        assert found["eval/drawn_seen/examples"] == 16 and found["eval/captions/examples"] == 16
        assert "a picture of a" in (tmp_path / "run" / "report.html").read_text()
        assert found["train/loss"] < 5
        model = vlm_jax.load(tmp_path / "run")
        images = model.draw(["a picture of a red circle"] * 2, guidance=2.0)
        assert images.shape == (2, 32, 32, 3) and len(model.generate(images)) == 2
    else:
        assert 0.1 < found["train/packing/text_fill"] < 1


def test_a_classifier_that_is_not_there_is_told_before_the_run_begins(tmp_path, capsys):
    options = ["--config=chameleon_tiny:short", f"--workdir={tmp_path}/run", "--bind=Drawn.classifier=nowhere"]
    assert main(options) == 2
    assert "Drawn.classifier=nowhere: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
