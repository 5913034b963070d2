"""Codebooks of another size than a config says, where a model is loaded and where a run starts from it."""

import json

import jax
import numpy as np
import pytest

import vlm_jax
from tests.library.workdirs import autoencoder_workdir
from vlm_jax import config as configs
from vlm_jax import warm_start
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return autoencoder_workdir(tmp_path_factory.mktemp("vq"))


def live(size: int):
    """The state that a run with so many codes starts with."""
    config = configs.load("vqvae_tiny:short")
    config.task.model.bottleneck.size = size
    return configs.build(config.task).model.bottleneck.init_state(jax.random.key(0))


def test_a_model_is_not_loaded(workdir, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    config["task"]["model"]["bottleneck"]["size"] = 256
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"state/count is \[1, 512\], that of its config \[1, 256\]\.$"):
        vlm_jax.load(tmp_path)


def test_a_run_does_not_start_from_it(workdir):
    with pytest.raises(UserError, match=r"^config.init_from: its state \w+ is \(1, 512.*wanted is \(1, 256"):
        warm_start.load_state(str(workdir), live(256))
    started = warm_start.load_state(str(workdir), live(512))
    expected = vlm_jax.load(workdir).variables["state"]["embedding"]
    np.testing.assert_array_equal(started["embedding"], expected)
