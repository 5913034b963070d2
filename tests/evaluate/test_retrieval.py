"""Retrieval against hand-computed cases: ties, equal captions, several captions an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate import toy
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.evaluate.base import TIE
from vlm_jax.evaluate.retrieval import Retrieval, recalls, retrieve
from vlm_jax.mesh import Layout


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_perfect():
    x = np.eye(12)
    assert set(recalls(x, x, np.arange(12), np.arange(12)).values()) == {1.0}


def test_a_collapsed_model_scores_nothing():
    x = np.ones((12, 3))
    found = recalls(x, x, np.arange(12), np.arange(12))
    assert set(found.values()) == {0.0}


def test_what_is_found_is_wrong_where_it_ties():
    x = np.ones((3, 2))
    to_text, to_image = retrieve(x, x, np.arange(3), np.arange(3))
    assert all(found.best[k] != k for found in (to_text, to_image) for k in range(3))
    to_text, _ = retrieve(np.eye(3), np.eye(3), np.arange(3), np.arange(3))
    assert to_text.best.tolist() == [0, 1, 2] and to_text.rank.tolist() == [0, 0, 0]


@pytest.mark.parametrize("n", [12, 24, 101])
def test_so_does_one_that_collapsed_to_any_direction(n):
    """Products of equal f32 vectors differ by an ulp between the rows of a matrix."""
    for seed in range(5):
        x = np.repeat(unit(np.random.default_rng(seed).normal(size=(1, 64))), n, axis=0).astype(np.float32)
        assert set(recalls(x, x, np.arange(n), np.arange(n)).values()) == {0.0}


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
        min(
            sum(scores[i, k] >= scores[i, j] - TIE and not same[i, k] for k in range(n)) for j in range(n) if same[i, j]
        )
        for i in range(n)
    ]
    found = recalls(images, texts, np.arange(n), ids, block=block)
    back = recalls(texts, images, np.arange(n), ids, block=block)
    for k in (1, 5, 10):
        assert found[f"image_to_text_r{k}"] == pytest.approx(np.mean(np.array(rank) < k))
        assert back[f"text_to_image_r{k}"] == found[f"image_to_text_r{k}"]


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 10_000), st.integers(1, 40))
def test_several_captions_that_may_be_equal_within_and_between_images(n, most, seed, block):
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    ids = rng.integers(0, max(1, len(owner) // 2), len(owner))
    images, texts = unit(rng.normal(size=(n, 3))), unit(rng.normal(size=(ids.max() + 1, 3)))[ids]
    scores = images @ texts.T
    captions = [set(ids[owner == i].tolist()) for i in range(n)]
    right = np.array([[ids[j] in captions[i] for j in range(len(ids))] for i in range(n)])
    to_text, to_image = retrieve(images, texts, owner, ids, block)
    for i in range(n):
        top = max(scores[i, j] for j in range(len(ids)) if right[i, j])
        assert to_text.rank[i] == sum(scores[i, j] >= top - TIE and not right[i, j] for j in range(len(ids)))
    for j in range(len(ids)):
        top = max(scores[i, j] for i in range(n) if right[i, j])
        assert to_image.rank[j] == sum(scores[i, j] >= top - TIE and not right[i, j] for i in range(n))


def test_rows_say_what_was_found():
    """Two captions an image; the second image's captions both look like the first image."""
    vectors = {"a": [1, 0, 0.1], "b": [1, 0, 0], "c": [1, 0.2, 0], "d": [1, 0.1, 0]}
    records = [{"image": toy.picture(v), "text": t} for v, t in (([1, 0, 0], ["a", "b"]), ([0, 1, 0], ["c", "d"]))]
    evaluator = Retrieval(source=toy.Source(tuple(records)), image=toy.IMAGE, text=toy.TEXT, captions=2, shown=(2, 1))
    result = evaluator(toy.predict(3, vectors), Layout().make(jax.devices()[:1]))
    assert result["image_to_text_r1"] == 1.0 and result["text_to_image_r1"] == 0.5
    rows = result.rows["text_to_image"]
    assert rows["index"].tolist() == [0, 0, 1, 1] and rows["answer_index"].tolist() == [0, 0, 0, 0]
    assert rows["text_to_image_r1"].tolist() == [True, True, False, False]
    assert result.rows["image_to_text"]["truth"].tolist() == ["a", "c"]
    assert result.rows["image_to_text"]["answer"].tolist() == ["b", "c"]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_the_whole_evaluator_on_any_devices_and_at_any_batch_size(devices, batch_size):
    """Images that encode their caption's number: every caption is found, and pictures are shown."""
    source = Shapes(size=33, image_size=32, split="test")
    text = Text(length=64)
    order = {source[i]["text"][0]: i for i in reversed(range(33))}
    rows = text(list(order))
    table = unit(np.random.default_rng(0).normal(size=(33, 8))).astype(np.float32)
    images = np.stack([source[i]["image"] for i in range(33)])

    def image_embedding(batch):
        same = (jnp.asarray(images)[None] == batch[:, None]).all((2, 3, 4))
        own = jnp.asarray([order[source[i]["text"][0]] for i in range(33)])
        return jnp.asarray(table)[own[same.argmax(1)]]

    def text_embedding(tokens):
        same = (jnp.asarray(rows)[None] == tokens[:, None]).all(2)
        return jnp.asarray(table)[jnp.asarray(list(order.values()))[same.argmax(1)]]

    evaluator = Retrieval(source=source, image=ImageTransform(size=32), text=text, batch_size=batch_size, shown=(6, 2))
    predict = {"image_embedding": image_embedding, "text_embedding": text_embedding}
    result = evaluator(predict, Layout().make(jax.devices()[:devices]))
    assert result["image_to_text_r1"] == result["text_to_image_r1"] == 1.0 and result["examples"] == 33
    assert result.artifacts["similarity"].values.shape == (6, 6)
    assert all(good for _, shown in result.artifacts["top images"].rows for _, _, good in shown[:1])
