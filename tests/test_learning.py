"""Recipes learn what they say. The bounded tier runs the first steps; `-m full` runs the recipes to their end."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def last_metrics(tmp_path: Path, *arguments: str, stage: str = "") -> dict[str, float]:
    """The last value of every metric of a run, or of one of its stages, on one device."""
    command = [sys.executable, "-m", "vlm_jax.main", f"--workdir={tmp_path}/run", *arguments]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines():
        found.update(json.loads(line))
    shown = {name: value for name, value in found.items() if name.startswith("eval/")}
    print(
        *arguments,
        *(f"{name}={value:.4g}" for name, value in shown.items()),
        f"{done.stdout.splitlines()[-4]}",
        sep="\n  ",
    )
    return found


def test_the_first_steps_of_siglip_tiny_learn_colours(tmp_path):
    steps = ["--config.total_examples=16000", "--config.data.source.size=8000", "--config.evaluate_percent=None"]
    few = ["--config.evals.zero_shot_seen.source.size=480", "--config.evals.retrieval.source.size=64"]
    found = last_metrics(tmp_path, "--config=siglip_tiny", *steps, *few)
    assert found["eval/zero_shot_seen/top1"] > 3 / 48  # chance is 1 in 48, colours alone give 1 in 6
    assert found["train/loss"] < 6.0  # 11 at the start
    assert found["train/skipped"] == 0


@pytest.mark.full
def test_the_first_steps_of_coca_tiny_learn_how_captions_are_worded(tmp_path):
    few = ["--config.evals.zero_shot_seen.source.size=48", "--config.evals.zero_shot_held_out.source.size=48"]
    few += ["--config.evals.retrieval.source.size=64", "--config.data.source.size=1280"]
    found = last_metrics(tmp_path, "--config=coca_tiny:short", "--config.total_examples=1280", *few)
    assert found["train/caption_loss"] < 2.5  # ln(96) = 4.6 for the tokens by themselves
    assert found["train/contrastive_loss"] < 9.0  # 11 at the start
    assert found["train/skipped"] == 0


@pytest.mark.full
def test_the_first_steps_of_siglip2_tiny_learn_by_all_four_losses(tmp_path):
    few = [f"--config.evals.{name}.source.size=48" for name in ("zero_shot_seen", "zero_shot_held_out", "retrieval")]
    few += ["--config.evals.captions.source.size=48", "--config.evals.referring.source.source.size=48"]
    few += ["--config.data.source.source.size=1280", "--config.evaluate_percent=100"]
    found = last_metrics(tmp_path, "--config=siglip2_tiny:short", *few)
    assert found["train/decoder_loss"] < 2.8  # ln(160) = 5.1 for the tokens by themselves
    assert found["train/contrastive_loss"] < 9.0  # 11 at the start
    assert found["train/distill_loss"] < math.log(256) and found["train/masked_loss"] < math.log(128)
    assert found["train/skipped"] == 0
    assert found["eval/referring/no_box"] < 0.5


@pytest.mark.full
def test_the_first_steps_of_lstm_tiny_learn_how_captions_are_worded(tmp_path):
    few = ["--config.evals.captions.source.size=48", "--config.data.source.size=1280"]
    found = last_metrics(tmp_path, "--config=lstm_tiny:short", *few)
    assert found["train/caption_loss"] < 2.0  # ln(96) = 4.6 for the tokens by themselves
    assert found["train/skipped"] == 0


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_siglip_tiny(tmp_path, seed):
    found = last_metrics(tmp_path, "--config=siglip_tiny", f"--config.seed={seed}")
    assert found["eval/zero_shot_seen/top1"] >= 0.97
    assert found["eval/zero_shot_held_out/top1"] >= 0.80


@pytest.mark.full
def test_navit_tiny(tmp_path):
    """Patches without convolutions learn colours, which leave six shapes: chance is 1 in 48, and 1 in 6 of these."""
    found = last_metrics(tmp_path, "--config=navit_tiny")
    assert found["eval/zero_shot_seen/top1"] >= 0.20
    assert found["eval/zero_shot_seen/top5"] >= 0.90


@pytest.mark.full
def test_coca_tiny(tmp_path):
    found = last_metrics(tmp_path, "--config=coca_tiny")
    assert found["eval/captions/exact_match"] >= 0.85
    assert found["eval/zero_shot_seen/top1"] >= 0.97
    assert found["eval/zero_shot_held_out/top1"] >= 0.80


@pytest.mark.full
def test_lstm_tiny(tmp_path):
    assert last_metrics(tmp_path, "--config=lstm_tiny")["eval/captions/exact_match"] >= 0.90


@pytest.mark.full
def test_siglip2_tiny(tmp_path):
    found = last_metrics(tmp_path, "--config=siglip2_tiny")
    assert found["eval/zero_shot_seen/top1"] >= 0.97 and found["eval/zero_shot_held_out/top1"] >= 0.45
    assert found["eval/captions/exact_match"] >= 0.50 and found["eval/referring/accuracy"] >= 0.20


@pytest.mark.full
def test_fuyu_tiny(tmp_path):
    """From scratch: colours and numbers of objects, hardly their shapes."""
    found = last_metrics(tmp_path, "--config=fuyu_tiny")
    assert found["eval/questions/accuracy"] >= 0.75


def trained_tower(tmp_path: Path) -> str:
    """The image tower of a run of `siglip_tiny`, as `init_from` names it."""
    (tmp_path / "tower").mkdir()
    last_metrics(tmp_path / "tower", "--config=siglip_tiny")
    return f"{tmp_path}/tower/run#image"


@pytest.mark.full
def test_eve_tiny_is_better_with_its_teacher(tmp_path):
    teacher = f"--config.stages.a_language.init_from.teacher={trained_tower(tmp_path)}"
    taught = last_metrics(tmp_path, "--config=eve_tiny", teacher, stage="c_tuning")
    (tmp_path / "plain").mkdir()
    plain = last_metrics(tmp_path / "plain", "--config=eve_tiny:plain", stage="c_tuning")
    assert taught["eval/questions/accuracy"] >= 0.77
    assert taught["eval/questions/accuracy"] >= plain["eval/questions/accuracy"] + 0.02
    assert taught["eval/questions/accuracy/shape"] >= plain["eval/questions/accuracy/shape"] + 0.05


@pytest.mark.full
def test_eve_tiny_with_weights_of_their_own_for_images(tmp_path):
    found = last_metrics(tmp_path, "--config=eve_tiny:v2", stage="c_tuning")
    assert found["eval/questions/accuracy"] >= 0.72
    assert found["eval/questions/accuracy/shape"] >= found["eval/questions/majority/shape"] + 0.05


@pytest.mark.full
def test_llava_tiny(tmp_path):
    """Answers by the tower of `siglip_tiny`; of each type but relations much better than its commonest answer."""
    tower = f"--config.init_from.image={trained_tower(tmp_path)}"
    found = last_metrics(tmp_path, "--config=llava_tiny", tower)
    assert found["eval/questions/accuracy"] >= 0.85
    for kind in ("count", "count_colour", "colour", "size", "shape", "exist_colour", "exist_shape"):
        assert found[f"eval/questions/accuracy/{kind}"] > found[f"eval/questions/majority/{kind}"] + 0.2


@pytest.mark.full
def test_clip_tiny(tmp_path):
    found = last_metrics(tmp_path, "--config=clip_tiny")
    assert found["eval/zero_shot_seen/top1"] >= 0.90


@pytest.mark.full
@pytest.mark.parametrize(("variant", "top1"), [("", 0.50), (":long", 0.62)])
def test_siglip_cifar10(tmp_path, shared_data, variant, top1):
    data = [f"--config.data.source.path={shared_data}/cifar10/train-*.parquet"]
    data += [f"--config.evals.zero_shot.source.path={shared_data}/cifar10/test-*.parquet"]
    found = last_metrics(tmp_path, f"--config=siglip_cifar10{variant}", *data)
    assert found["eval/zero_shot/examples"] == 10_000
    assert found["eval/zero_shot/top1"] >= top1


@pytest.mark.full
@pytest.mark.parametrize(
    ("recipe", "baseline"),
    [("vae_tiny", "pca"), ("vqvae_tiny", "kmeans"), ("dvae_tiny", "kmeans"), ("fsq_tiny", "kmeans")],
)
def test_autoencoders_are_better_than_their_baselines(tmp_path, shared_data, recipe, baseline):
    baselines = json.loads((ROOT / "benchmarks/results/autoencoders.json").read_text())
    data = [f"--config.data.source.path={shared_data}/cifar10/train-*.parquet"]
    data += [f"--config.evals.reconstructions.source.path={shared_data}/cifar10/test-*.parquet"]
    found = last_metrics(tmp_path, f"--config={recipe}", *data)
    assert found["eval/reconstructions/examples"] == 10_000
    assert found["eval/reconstructions/mse"] < baselines[baseline]["mse"]
    if recipe == "vqvae_tiny":
        assert found["eval/reconstructions/codes_used"] > 0.8


@pytest.fixture(scope="module")
def shapes_as_tokens(tmp_path_factory) -> list[str]:
    """What decoders of image tokens are given: a tokenizer, and a classifier that has seen nothing of it."""
    folder = tmp_path_factory.mktemp("tokens")
    for name in ("judge", "tokenizer"):
        (folder / name).mkdir()
    tower = f"--config.init_from.perceptual={trained_tower(folder)}"
    found = last_metrics(folder / "tokenizer", "--config=fsq_tiny:shapes", tower)
    assert found["eval/reconstructions/mse"] < 0.003
    last_metrics(folder / "judge", "--config=siglip_tiny", "--config.seed=1")
    return [f"--config.init_from.tokenizer={folder}/tokenizer/run", f"--bind=Drawn.classifier={folder}/judge/run"]


@pytest.mark.full
@pytest.mark.parametrize(("recipe", "drawn"), [("chameleon_tiny", 0.80), ("cm3_tiny", 0.65)])
def test_shapes_are_told_and_drawn_as_tokens(tmp_path, shapes_as_tokens, recipe, drawn):
    found = last_metrics(tmp_path, f"--config={recipe}", *shapes_as_tokens)
    assert found["eval/captions/exact_match"] >= 0.80
    assert found["eval/drawn_seen/right"] >= drawn


@pytest.mark.full
def test_cifar10_reads_and_steps(tmp_path, shared_data):
    """The same on real images, for a few steps: loading, captions from class names, evaluation."""
    data = [f"--config.data.source.path={shared_data}/cifar10/train-*.parquet", "--config.total_epochs=None"]
    data += [
        f"--config.evals.zero_shot.source.path={shared_data}/cifar10/test-*.parquet",
        "--config.total_examples=6400",
    ]
    few = ["--config.evals.zero_shot.source.limit=500", "--config.optimizer.schedule.warmup_steps=10"]
    found = last_metrics(tmp_path, "--config=siglip_cifar10", *data, *few)
    assert found["eval/zero_shot/examples"] == 500
    assert found["eval/zero_shot/top1"] > 0.13  # chance is 0.1
