"""The evaluators of models that write, with such a model: one result for any batch size and any devices."""

import functools

import jax
import numpy as np
import pytest

from vlm_jax import partition
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.evaluate.captions import Captions
from vlm_jax.evaluate.likelihood import LikelihoodZeroShot
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout
from vlm_jax.models.coca import CaptionDecoder, CoCa, ImageTower, TextTower
from vlm_jax.tasks.captioning import Captioning

SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32"}
TEXT = Text(length=32, bos=True)
SOURCE = Shapes(size=13, split="test", scenes="single", pairs="all", image_size=8)


@functools.cache
def task():
    options = dict(vocab_size=TEXT.vocab_size, length=TEXT.length, pad_id=TEXT.pad_id, eos_id=TEXT.eos_id)
    model = CoCa(
        image=ImageTower(**SHAPE, patch_size=4, image_size=8, out_dim=16, queries=4, pool_heads=2),
        text=TextTower(**SHAPE, **options, out_dim=16),
        decoder=CaptionDecoder(**SHAPE, vocab_size=TEXT.vocab_size),
    )
    return Captioning(model, bos_id=TEXT.model.bos_id, sampling=Sampling(max_tokens=6))


def predict(devices):
    mesh = Layout().make(jax.devices()[:devices])
    params = jax.jit(task().model.init)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    return task().predict({"params": jax.device_put(params, partition.shardings(params, Layout(), mesh, {}))}), mesh


@functools.cache
def found(devices, batch_size):
    both = dict(source=SOURCE, image=ImageTransform(size=8), text=TEXT, batch_size=batch_size)
    chosen = LikelihoodZeroShot(**both, templates=("a {}",), prior=0.5, normalise=True)
    model, mesh = predict(devices)
    return Captions(**both)(model, mesh), chosen.scores(model, mesh, {})


@pytest.mark.full
def test_any_batch_size_and_devices():
    (written, scores), (others, other_scores) = found(1, 64), found(4, 5)
    answers = written.rows["captions"]["answer"].tolist()
    assert answers == others.rows["captions"]["answer"].tolist() and len(set(answers)) > 1
    assert dict(written) == dict(others)
    np.testing.assert_allclose(scores.vectors, other_scores.vectors, atol=1e-4)
    assert scores.vectors.shape == (13, 48) and np.ptp(scores.vectors, axis=0).min() > 1e-3  # it looks at the images


@pytest.mark.full
def test_scores_are_sums_of_what_a_model_says_of_each_token():
    """By the token of the text, half of what it says of grey taken off."""
    model, _ = predict(1)
    source, rows = SOURCE, TEXT([f"a {SOURCE.class_names[k]}" for k in (0, 47)])
    images = np.stack([source[k]["image"] for k in (0, 0, 12, 12)])
    grey = np.full_like(images, 128)
    pairs = np.tile(rows, (2, 1))
    plain, blank = (np.asarray(model["log_likelihood"](x, pairs)) for x in (images, grey))
    tokens = [len(f"a {SOURCE.class_names[k]}") + 1 for k in (0, 47)]  # bytes, and the end
    wanted = (plain - 0.5 * blank).reshape(2, 2) / tokens
    np.testing.assert_allclose(found(1, 64)[1].vectors[[0, 12]][:, [0, 47]], wanted, atol=1e-4)
