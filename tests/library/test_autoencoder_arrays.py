"""Codebooks of another size than a config says, where a model is loaded and where a run starts from it."""

import json

import jax
import numpy as np
import pytest

import vlm_jax
from tests.library.workdirs import autoencoder_workdir
from vlm_jax import config as configs
from vlm_jax import warm_start
from vlm_jax.checkpoint import Store
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
        warm_start.load_state(str(workdir), live(256), {str(workdir): 3})
    started = warm_start.load_state(str(workdir), live(512), {str(workdir): 3})
    expected = vlm_jax.load(workdir).variables["state"]["embedding"]
    np.testing.assert_array_equal(started["embedding"], expected)


@pytest.mark.parametrize("parts", [False, True])
def test_codebooks_are_of_the_step_that_the_parameters_are_of(tmp_path, parts, capsys):
    """The newest step's parameters are damaged, its codebook is not: it belongs to others than those taken."""
    with Store(tmp_path) as store:
        for step in (1, 2):
            store.save(
                step, {"params": {"x": np.full(3, float(step))}, "state": {"codes": np.full(4, float(step))}}, {}
            )
    (tmp_path / "checkpoints" / "2" / "params" / "manifest.ocdbt").unlink()
    path = {"tokenizer": str(tmp_path)} if parts else str(tmp_path)
    nested = lambda inner: {"tokenizer": inner} if parts else inner
    loaded = (warm_start.load_parts if parts else warm_start.load)(path, None, print)
    assert loaded.steps == {str(tmp_path): 1} and "checkpoint 2 is damaged" in capsys.readouterr().err
    zeros = nested({"codes": jax.numpy.zeros(4)})
    state = warm_start.load_state(path, zeros, loaded.steps)
    jax.tree.map(
        np.testing.assert_array_equal,
        (loaded.params, state),
        (nested({"x": np.ones(3)}), nested({"codes": np.ones(4)})),
    )
