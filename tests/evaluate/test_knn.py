"""k nearest neighbours against scikit-learn, and against every way to break ties."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from tests.evaluate import toy
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import TIE
from vlm_jax.evaluate.knn import KNN, vote
from vlm_jax.mesh import Layout

ONE = Layout().make(jax.devices()[:1])


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def data(n=90, m=400, dim=6, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, dim))
    labels, test = rng.integers(0, classes, m), rng.integers(0, classes, n)
    draw = lambda y: unit(centres[y] + 0.8 * rng.normal(size=(len(y), dim)))
    return draw(test), draw(labels), labels, test


@pytest.mark.parametrize("temperature", [0.07, None])
@pytest.mark.parametrize(("devices", "blocks"), [(1, (512, 16_384)), (8, (3, 64)), (1, (7, 33))])
def test_is_scikit_learns(temperature, devices, blocks):
    queries, keys, key_labels, labels = data()
    k, mesh = 9, Layout().make(jax.devices()[:devices])
    won = vote(queries, keys, key_labels, labels, k, temperature, 5, mesh, blocks)
    weights = "uniform" if temperature is None else lambda d: np.exp((1 - d**2 / 2) / temperature)
    theirs = KNeighborsClassifier(k, weights=weights).fit(keys, key_labels)
    share = np.sort(theirs.predict_proba(queries), axis=1)
    decided = share[:, -1] > share[:, -2] + 1e-6  # of equally many votes it takes the first class, and we none
    right = theirs.predict(queries) == labels
    assert decided.mean() > 0.8 and (won[decided] == right[decided]).all()
    assert not won[~decided].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
def test_a_tie_counts_only_where_it_does_not_matter(seed, k, weighted):
    """Keys on few directions: all ways to choose k of those that tie for the last places are tried."""
    rng = np.random.default_rng(seed)
    directions = unit(rng.normal(size=(3, 3)))
    keys, key_labels = directions[rng.integers(0, 3, 7)], rng.integers(0, 3, 7)
    queries, labels = directions[rng.integers(0, 3, 5)], rng.integers(0, 3, 5)
    temperature = 0.5 if weighted else None
    won = vote(queries, keys, key_labels, labels, k, temperature, 3, ONE, (4, 3))
    for query, label, found in zip(queries, labels, won):
        scores = keys @ query
        last = np.sort(scores)[-k]
        inside, beside = np.flatnonzero(scores > last + TIE), np.flatnonzero(np.abs(scores - last) <= TIE)
        worst = True
        for chosen in itertools.combinations(beside, k - len(inside)):
            neighbours = [*inside, *chosen]
            w = np.exp(scores[neighbours] / 0.5) if weighted else np.ones(k)
            votes = np.bincount(key_labels[neighbours], w, minlength=3)
            worst &= votes[label] > np.delete(votes, label).max() * (1 + 1e-5)
        assert found == worst


def source(n, seed, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    vectors = np.clip(np.eye(classes)[labels] + 0.5 * rng.random((n, classes)), 0, 1.5) / 1.5
    records = tuple({"image": toy.picture(v), "label": int(y)} for v, y in zip(vectors, labels))
    return toy.Source(records, tuple("abc"))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_the_whole_evaluator(devices, batch_size):
    evaluator = KNN(train=source(60, 0), source=source(40, 1), image=toy.IMAGE, k=5, batch_size=batch_size)
    result = evaluator(toy.predict(3, {"": [1, 0, 0]}), Layout().make(jax.devices()[:devices]))
    assert result["top1"] == result["majority_top1"] == 1.0 and result["examples"] == 40


def test_a_collapsed_model_scores_nothing():
    evaluator = KNN(train=source(60, 0), source=source(40, 1), image=toy.IMAGE)
    result = evaluator(toy.collapsed(), ONE)
    assert result["top1"] == result["majority_top1"] == 0.0


def test_mistakes():
    with pytest.raises(UserError, match="wanted are k >= 1"):
        KNN(train=source(6, 0), source=source(4, 1), image=toy.IMAGE, k=0)
    with pytest.raises(UserError, match="toy has 6 labelled images"):
        KNN(train=source(6, 0), source=source(4, 1), image=toy.IMAGE)(toy.collapsed(), ONE)
    with pytest.raises(UserError, match="wanted are the same in both"):
        KNN(train=source(6, 0), source=toy.Source((), ("x",)), image=toy.IMAGE)
    with pytest.raises(UserError, match="gives no 'pooled'"):
        KNN(train=source(30, 0), source=source(4, 1), image=toy.IMAGE, function="pooled")(toy.collapsed(), ONE)
