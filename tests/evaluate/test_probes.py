"""Ridge regression and logistic regression against scikit-learn; the probes that use them."""

import warnings

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from tests.evaluate import toy
from vlm_jax.errors import UserError
from vlm_jax.evaluate.few_shot import FewShot, apply, ridge
from vlm_jax.evaluate.linear_probe import LinearProbe, fit, scores
from vlm_jax.mesh import Layout

ONE = Layout().make(jax.devices()[:1])


def blobs(n=300, dim=8, classes=4, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels


@pytest.mark.parametrize("n", [5, 300])
def test_ridge_is_scikit_learns(n):
    x, y = blobs(n)
    for l2, weights in zip((0.01, 10.0), ridge(x, np.eye(4)[y], (0.01, 10.0))):
        theirs = Ridge(alpha=l2).fit(x.astype(np.float64), np.eye(4)[y])
        np.testing.assert_allclose(weights[0].T, theirs.coef_, atol=1e-9)
        np.testing.assert_allclose(apply(weights, x), theirs.predict(x.astype(np.float64)), atol=1e-8)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_logistic_regression_is_scikit_learns(devices, l2):
    x, y = blobs(301)
    weights = fit(x, y, 4, l2, Layout().make(jax.devices()[:devices]), tolerance=1e-6)
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(weights["kernel"].T, theirs.coef_, atol=2e-3)
    ours = scores(weights, x)
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs.decision_function(x), atol=5e-3)
    assert (ours.argmax(1) == theirs.predict(x)).mean() > 0.99


def source(n, seed, classes=3, spread=0.5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    vectors = (np.eye(classes)[labels] + spread * rng.random((n, classes))) / (1 + spread)
    records = tuple({"image": toy.picture(v), "label": int(y)} for v, y in zip(vectors, labels))
    return toy.Source(records, tuple("abc"))


TRAIN, TEST = source(90, 0, spread=2.0), source(60, 1, spread=2.0)
MODEL = toy.predict(3, {"": [1, 0, 0]})


def features(records):
    x = np.array([r["image"].reshape(-1)[:3] / 255 for r in records])
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.array([r["label"] for r in records])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [7, 256])
def test_linear_probe_is_scikit_learns_at_the_penalty_that_it_chose(devices, batch_size):
    probe = LinearProbe(train=TRAIN, source=TEST, image=toy.IMAGE, batch_size=batch_size, l2=(1e-3, 1e-2))
    result = probe(MODEL, Layout().make(jax.devices()[:devices]))
    (x, y), (x_test, y_test) = features(TRAIN.records), features(TEST.records)
    scale = 1 / np.sqrt(np.square(x - x.mean(0)).mean())
    theirs = LogisticRegression(C=1 / (result["l2"] * len(x)), tol=1e-8, max_iter=5000)
    right = theirs.fit(scale * (x - x.mean(0)), y).predict(scale * (x_test - x.mean(0))) == y_test
    assert result["top1"] == pytest.approx(right.mean()) and 0.7 < result["top1"] < 1
    assert (result.rows["images"]["top1"] == right).all()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [7, 256])
def test_few_shot_is_the_same_at_any_batch_size_and_gets_better_with_shots(devices, batch_size):
    probe = FewShot(train=TRAIN, source=TEST, image=toy.IMAGE, batch_size=batch_size, shots=(1, 20), seeds=4)
    result = probe(MODEL, Layout().make(jax.devices()[:devices]))
    assert result == {**result, **expected_few_shot()}
    assert result["top1_20shot"] > result["top1_1shot"] and result["top1_1shot_std"] > 0
    rows = result.rows["images"]
    assert rows["top1_1shot"].mean() == pytest.approx(result["top1_1shot"])


def expected_few_shot():
    probe = FewShot(train=TRAIN, source=TEST, image=toy.IMAGE, shots=(1, 20), seeds=4)
    return dict(probe(MODEL, ONE))


def test_images_that_choose_the_penalty_are_never_trained_on():
    probe = FewShot(train=TRAIN, source=TEST, image=toy.IMAGE, shots=(3, 25), held_out=5)
    labels = np.arange(90) % 3
    held = [set(probe._draw(labels, "abc", seed)[0].tolist()) for seed in range(3)]
    assert held[0] == held[1] == held[2] and len(held[0]) == 15
    for seed in range(3):
        for label, pool in enumerate(probe._draw(labels, "abc", seed)[1]):
            assert not held[0] & set(pool.tolist()) and (labels[pool] == label).all() and len(set(pool)) == 25


def test_collapsed_features_are_no_better_than_nothing():
    few = FewShot(train=TRAIN, source=TEST, image=toy.IMAGE, shots=(2,))(toy.collapsed(), ONE)
    assert few["top1_2shot"] == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is divided by the variance, which is zero
        probe = LinearProbe(train=TRAIN, source=TEST, image=toy.IMAGE)(toy.collapsed(), ONE)
    assert probe["top1"] == 0.0


@pytest.mark.parametrize(
    ("probe", "options", "message"),
    [
        (FewShot, {"shots": (0,)}, "all are at least 1"),
        (FewShot, {"l2": ()}, "penalties above 0"),
        (LinearProbe, {"l2": (0.0,)}, "penalties above 0"),
        (LinearProbe, {"held_out": 1.0}, "a fraction between 0 and 1"),
        (LinearProbe, {"max_steps": 0}, "values above 0"),
    ],
)
def test_mistakes(probe, options, message):
    with pytest.raises(UserError, match=message):
        probe(train=TRAIN, source=TEST, image=toy.IMAGE, **options)


def test_too_few_images():
    with pytest.raises(UserError, match="has 30 images of class 'a'; wanted are 26 to train on and 5 held out"):
        FewShot(train=TRAIN, source=TEST, image=toy.IMAGE, shots=(26,))(MODEL, ONE)
