"""Recipes of autoencoders run from the command line, on images without texts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vlm_jax
from tests.conftest import FAST
from vlm_jax import config as configs
from vlm_jax.checkpoint import load_params
from vlm_jax.evaluate import results
from vlm_jax.experiment import open_experiment

ROOT = Path(__file__).parents[2]
SMALL = ("width=16", "blocks=1")
NAMES = ("vae_tiny", "vqvae_tiny", "dvae_tiny", "fsq_tiny")


def run(workdir: Path, *arguments: str, flags: str = "") -> dict[str, float]:
    """The last value of every metric of a run on one device."""
    command = [sys.executable, "-m", "vlm_jax.main", f"--workdir={workdir}", *arguments]
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        found.update(json.loads(line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_recipes_need_images_alone(tmp_path, name):
    experiment = open_experiment(configs.load(f"{name}:short"), tmp_path / "assets")
    assert experiment.text is None and not list((tmp_path / "assets").glob("*"))
    batch = next(experiment.data.batches(seed=0, batch_size=2, rows=np.arange(2)))
    assert "text" not in batch and batch["image"].shape == experiment.task.batch_spec(2)["image"].shape


@pytest.mark.full
def test_a_recipe_without_texts_trains_and_is_evaluated_again(tmp_path):
    """A few steps of a smaller `vqvae_tiny:short`: no tokenizer, images alone, codes counted, pictures shown."""
    network = [f"--config.task.model.{part}.{field}" for part in ("encoder", "decoder") for field in SMALL]
    codes = ["--config.task.model.bottleneck.size=16", "--config.task.model.bottleneck.kmeans=0"]
    few = ["--config.total_examples=48", "--config.batch_size=8", "--config.optimizer.schedule.warmup_steps=1"]
    few += ["--config.evaluate_percent=None", "--config.data.source.size=64"]
    few += ["--config.evals.reconstructions.source.size=16"]
    found = run(tmp_path / "run", "--config=vqvae_tiny:short", *network, *codes, *few, flags=FAST)
    assert found["train/skipped"] == 0 and found["train/reconstruction_loss"] < found["train/loss"]
    assert found["eval/reconstructions/examples"] == 16 and found["eval/reconstructions/bits"] == 64 * 4
    assert 1 / 16 <= found["eval/reconstructions/codes_used"] <= 1
    rows = results.read(tmp_path / "run")["reconstructions"].rows()["images"]
    assert rows["mse"].mean() == pytest.approx(found["eval/reconstructions/mse"])
    assert "their reconstructions" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.full
def test_judges_learn_and_stay_behind(tmp_path):
    """A few steps of a smaller `vqvae_tiny:gan`; what is loaded to be used has neither of the judges."""
    network = [f"--config.task.model.{part}.{field}" for part in ("encoder", "decoder") for field in SMALL]
    few = ["--config.total_examples=32", "--config.batch_size=8", "--config.optimizer.schedule.warmup_steps=1"]
    few += ["--config.data.source.size=64", "--config.evals={}", "--config.task.model.bottleneck.kmeans=0"]
    few += ["--config.task.adversary.start=2", "--config.log_steps=1"]
    found = run(tmp_path / "run", "--config=vqvae_tiny:gan", *network, *few, flags=FAST)
    assert found["train/skipped"] == 0 and found["train/perceptual_loss"] > 0
    waited, judged = (json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[k]) for k in (0, 3))
    assert waited["train/discriminator_loss"] == waited["train/adversarial_weight"] == 0
    assert judged["train/discriminator_loss"] > 0 and judged["train/adversarial_weight"] > 0
    params, _ = load_params(tmp_path / "run")
    assert {"perceptual", "discriminator"} < params.keys()
    model = vlm_jax.load(tmp_path / "run")
    assert model.params.keys() == {"encoder", "bottleneck", "decoder"}
    assert model.encode_tokens(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 8, 8)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_learn_what_shapes_are_drawn_on(tmp_path, name):
    found = run(tmp_path / "run", f"--config={name}:short")
    assert found["train/skipped"] == 0
    assert found["eval/reconstructions/mse"] < 0.06  # 0.12 of grey pictures
    assert ("eval/reconstructions/bits" in found) == (name != "vae_tiny")
