"""Retrieval against hand-computed cases: ties, equal captions, several captions an image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.retrieval import recalls


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_perfect():
    x = np.eye(12)
    assert set(recalls(x, x, np.arange(12), np.arange(12)).values()) == {1.0}


def test_a_collapsed_model_scores_nothing():
    x = np.ones((12, 3))
    found = recalls(x, x, np.arange(12), np.arange(12))
    assert set(found.values()) == {0.0}


def test_equal_captions_are_all_right():
    images, texts = np.eye(3), np.eye(3)[[1, 0, 2]]
    assert recalls(images, texts, np.arange(3), np.array([7, 7, 8]))["image_to_text_r1"] == 1.0
    assert recalls(images, texts, np.arange(3), np.array([6, 7, 8]))["image_to_text_r1"] == pytest.approx(1 / 3)


def test_any_of_an_images_captions_counts():
    images = np.eye(2)
    texts = np.array([[0, 1.0], [1.0, 0], [0, 1.0]])  # captions of image 0: one wrong, one right
    found = recalls(images, texts, np.array([0, 0, 1]), np.arange(3))
    assert found["image_to_text_r1"] == 0.5  # image 1 ties with image 0's wrong caption
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)


@given(st.integers(2, 30), st.integers(0, 10_000), st.integers(1, 40))
def test_equals_ranking_written_out(n, seed, block):
    rng = np.random.default_rng(seed)
    images, texts, ids = unit(rng.normal(size=(n, 4))), unit(rng.normal(size=(n, 4))), rng.integers(0, n, n)
    scores, same = images @ texts.T, ids[:, None] == ids[None]
    rank = [
        min(sum(scores[i, k] >= scores[i, j] and not same[i, k] for k in range(n)) for j in range(n) if same[i, j])
        for i in range(n)
    ]
    found = recalls(images, texts, np.arange(n), ids, block=block)
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(np.mean(np.array(rank) < k))
