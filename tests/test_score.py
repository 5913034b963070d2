"""Scores of a trained model: the cosines that its towers give, from the workdir alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers import small_config
from vlm_jax import config as configs
from vlm_jax import tree
from vlm_jax.checkpoint import Store, load_params
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools import chunks
from vlm_jax.data.tools.command import main as tools
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment
from vlm_jax.score import Scorer

SOURCE = Shapes(size=21, split="val")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """What a run leaves, with the parameters that it begins with."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = small_config(tokenizer="train:100")
    experiment = open_experiment(config, folder / "assets")
    (folder / "config.json").write_text(configs.to_json(config))
    params = jax.jit(experiment.task.init)(jax.random.key(0))["params"]
    with Store(folder, stacks=experiment.task.stacks) as store:
        store.save(2, {"params": params}, {"config": configs.plain(config)})
        store.wait()
    return folder


def records() -> tuple[list[bytes], list[list[str]]]:
    found = [SOURCE[k] for k in range(len(SOURCE))]
    return [r["image"] for r in found], [[r["text"]] if isinstance(r["text"], str) else list(r["text"]) for r in found]


@pytest.mark.parametrize("batch_size", [4, 64])
def test_scores_are_the_best_cosines(workdir, batch_size):
    experiment = open_experiment(configs.load(str(workdir)), workdir / "assets")
    task, params = experiment.task, tree.stack(load_params(workdir)[0], experiment.task.stacks)
    predict = task.predict({"params": params, "state": {}})
    images, captions = records()
    pictures = np.asarray(predict["image_embedding"](np.stack([experiment.image(image) for image in images])))
    texts = [text for own in captions for text in own]
    vectors = dict(zip(texts, np.asarray(predict["text_embedding"](experiment.text(texts)))))
    wanted = [max(vectors[text] @ picture for text in own) for picture, own in zip(pictures, captions)]
    scorer = Scorer(workdir, batch_size=batch_size)
    found = scorer(np.stack([scorer.image(image) for image in images]), captions)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert scorer.step == 2 and jax.device_count() == 8


def test_the_data_of_the_run_need_not_be_there(workdir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["source"] = {"_target": "data.sources.webdataset.WebDataset", "path": "gone/*.tar"}
    (moved / "config.json").write_text(json.dumps(config))
    Scorer(moved)
    shutil.rmtree(moved / "assets")
    with pytest.raises(UserError, match="lost the tokenizer"):
        Scorer(moved)
    shutil.rmtree(moved / "checkpoints")
    with pytest.raises(UserError):
        Scorer(moved)
    with pytest.raises(UserError, match="is no workdir"):
        Scorer(tmp_path)


def test_the_tool_goes_on_and_curate_takes_what_it_wrote(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks, "CHUNK", 8)
    source = ["shapes", "--source.size=21", "--source.split=val"]
    argv = ["score", *source, f"--workdir={workdir}", "--output=r", "--batch_size=8"]
    score, calls = Scorer.__call__, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(Scorer, "__call__", interrupted)
    assert tools(argv) == 130 and not (tmp_path / "r/scores.jsonl").exists()
    assert tools(argv) == 0 and len(calls) == 4
    rows = [json.loads(line) for line in (tmp_path / "r/scores.jsonl").read_text().splitlines()]
    scorer, (images, captions) = Scorer(workdir), records()
    wanted = score(scorer, np.stack([scorer.image(image) for image in images]), captions)
    np.testing.assert_allclose([row["score"] for row in rows], wanted, atol=1e-5)
    assert [row["key"] for row in rows] == [str(SOURCE[k].get("key", k)) for k in range(21)]
    capsys.readouterr()
    assert tools(["curate", *source, "--output=r", "--scores=r/scores.jsonl", "--top_fraction=0.25"]) == 0
    assert json.loads((tmp_path / "r/curate.json").read_text())["kept"] == 5
    assert tools([*argv, "--weights=raw"]) == 2
    assert "invalid choice" in capsys.readouterr().err
