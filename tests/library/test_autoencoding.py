"""`vlm_jax.load` of an autoencoder's run: images to tokens and back."""

import numpy as np
import pytest
from PIL import Image

import vlm_jax
from vlm_jax import main
from vlm_jax.errors import UserError

pytestmark = pytest.mark.full

PICTURES = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)) for _ in range(3)]


def run(recipe: str, folder) -> str:
    few = ["--config.total_examples=16", "--config.batch_size=8", "--config.evals={}", "--config.data.source.size=32"]
    few += ["--config.optimizer.schedule.warmup_steps=1", "--config.compilation_cache=None"]
    sizes = [f"--config.task.model.{part}coder.{field}" for part in ("en", "de") for field in ("width=16", "blocks=1")]
    assert main.main([f"--config={recipe}:short", f"--workdir={folder}", *few, *sizes]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vlm_jax.load(run("vqvae_tiny", tmp_path_factory.mktemp("vq") / "run"), batch_size=2)


def test_tokens_stand_for_the_reconstruction(model):
    tokens = model.encode_tokens(PICTURES)
    assert tokens.shape == (3, 8, 8) and tokens.dtype == np.int32 and len(np.unique(tokens)) > 1
    difference = model.decode_tokens(tokens).astype(int) - model.reconstruct(PICTURES)
    assert difference.shape == (3, 32, 32, 3) and np.abs(difference).max() <= 1  # a rounding
    np.testing.assert_array_equal(model.encode_tokens(PICTURES[1]), tokens[1:2])
    assert f"{model}".endswith("8 x 8 tokens of 512 an image>") and model.step == 2


def test_the_codebook_is_that_of_the_checkpoint(model):
    """Codes start by k-means in the first step, so that those of the initial state would be others."""
    assert bool(model.variables["state"]["started"])
    assert np.abs(model.variables["state"]["embedding"]).max() > 2 / 512


def test_another_grid(model):
    assert model.decode_tokens(np.zeros((1, 4, 6), int)).shape == (1, 16, 24, 3)


def test_what_are_no_tokens(model):
    with pytest.raises(UserError, match="tokens 0 to 512: the model has 0 to 511"):
        model.decode_tokens(np.array([[[0, 512]]]))
    with pytest.raises(UserError, match=r"takes whole numbers \[n, rows, cols\], not float64 \[2, 8, 8\]"):
        model.decode_tokens(np.zeros((2, 8, 8)))
    with pytest.raises(UserError, match="bytes: "):
        model.encode_tokens(b"no picture")


def test_latents_that_are_numbers(tmp_path):
    model = vlm_jax.load(run("vae_tiny", tmp_path / "run"))
    assert model.reconstruct(PICTURES).shape == (3, 32, 32, 3)
    with pytest.raises(UserError, match="has no tokens: its latents are numbers"):
        model.encode_tokens(PICTURES)
