"""Multi-label precision, calibration, groups and shift against scikit-learn and hand-computed cases."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tests.evaluate import toy
from vlm_jax.errors import UserError
from vlm_jax.evaluate.calibration import calibration_error, softmax
from vlm_jax.evaluate.groups import by_group
from vlm_jax.evaluate.multi_label import MultiLabel, average_precision
from vlm_jax.evaluate.shift import Shift
from vlm_jax.evaluate.zero_shot import ZeroShot
from vlm_jax.mesh import Layout

NAMES = ("red", "green", "blue")
PROMPTS = dict(zip(NAMES, np.eye(3)))


def mesh(devices=1):
    return Layout().make(jax.devices()[:devices])


def options(**more):
    return dict(image=toy.IMAGE, text=toy.TEXT, templates=("{}",), **more)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_scikit_learns_with_ties(rows):
    scores, positive = np.array([s for s, _ in rows], float), np.array([p for _, p in rows])
    positive[0] = True
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_multi_label_is_scikit_learns_mean(devices, batch_size):
    rng = np.random.default_rng(0)
    vectors, labels = rng.random((30, 3)), rng.integers(0, 2, (30, 4))
    labels[5, 0] = labels[7, 1] = -1  # not to count
    labels[:, 3] = 0  # no positive: left out
    source = toy.Source(
        tuple({"image": toy.picture(v), "labels": y} for v, y in zip(vectors, labels)), (*NAMES, "unseen")
    )
    predict = toy.predict(3, PROMPTS | {"unseen": [1, 1, 1]})
    result = MultiLabel(source=source, batch_size=batch_size, **options())(predict, mesh(devices))
    x = np.round(255 * vectors) / 255
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = [average_precision_score(labels[keep := labels[:, k] >= 0, k], x[keep, k]) for k in range(3)]
    assert result["mean_average_precision"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert result["examples"] == 30


def test_multi_label_without_any_positive():
    source = toy.Source(({"image": toy.picture([1]), "labels": np.zeros(3, int)},), NAMES)
    with pytest.raises(UserError, match="no image of any of its 3 classes"):
        MultiLabel(source=source, **options())(toy.predict(3, PROMPTS), mesh())


def test_calibration_by_hand():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.1])
    right = np.array([True, True, True, False, True, False])
    # bins of a tenth: |0.75 - 0.9| four times, |1 - 0.55|, |0 - 0.1|, the last at a bin's upper edge
    assert calibration_error(confidence, right, 10) == pytest.approx((4 * 0.15 + 0.45 + 0.1) / 6)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == 0
    assert calibration_error(np.zeros(1), np.zeros(1, bool)) == 0


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 1000))
def test_calibration_is_the_sum_over_bins(n, bins, seed):
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(n), rng.random(n) < 0.5
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, right, bins) == pytest.approx(total, abs=1e-12)


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


def test_groups():
    right, group = np.array([1, 0, 1, 1, 0], bool), np.array([0, 0, 2, 2, -1])
    assert by_group(right, group, ("a", "b", "c")) == {"worst_group": 0.5, "group/a": 0.5, "group/c": 1.0}
    assert by_group(right, np.full(5, -1), ("a",)) == {}


def labelled(flips, groups=()):
    """Images of three colours in turn, of which those at `flips` bear a wrong label."""
    records = [
        {"image": toy.picture(np.eye(3)[i % 3]), "label": (i + (i in flips)) % 3, "group": int(i % 2)}
        for i in range(12)
    ]
    return toy.Source(tuple(records), NAMES, groups)


@pytest.mark.parametrize("devices", [1, 8])
def test_zero_shot_with_groups_and_a_scale(devices):
    evaluator = ZeroShot(source=labelled({0, 2}, ("even", "odd")), **options())
    result = evaluator(toy.predict(3, PROMPTS, scale=2.0), mesh(devices))
    assert result["top1"] == pytest.approx(10 / 12)
    assert result["worst_group"] == result["group/even"] == pytest.approx(4 / 6) and result["group/odd"] == 1
    sure = np.exp(2) / (np.exp(2) + 2)
    assert result["ece"] == pytest.approx(abs(10 / 12 - sure), abs=1e-5)
    rows = result.rows["images"]
    assert rows["top1"].mean() == result["top1"] and rows["index"].tolist() == list(range(12))
    assert rows["truth"][0] == "green" and rows["answer"][0] == "red"


def test_shift_is_the_difference_to_the_first():
    parts = {name: ZeroShot(source=labelled(flips), **options()) for name, flips in (("here", {0}), ("there", {1, 2}))}
    result = Shift(parts=parts)(toy.predict(3, PROMPTS), mesh())
    assert result["here/top1"] == pytest.approx(11 / 12) and result["there/top1"] == pytest.approx(10 / 12)
    assert result["there/drop"] == result["mean_drop"] == pytest.approx(1 / 12)
    assert result.rows["there"]["there/top1"].mean() == pytest.approx(10 / 12)
    with pytest.raises(UserError, match="a reference and at least one"):
        Shift(parts={"one": parts["here"]})
