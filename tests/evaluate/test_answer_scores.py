"""Scores of answers by type, with the baseline and its intervals, against cases counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.evaluate import compare, results
from vlm_jax.evaluate.answer_scores import METRICS, Question, commonest, scored


def question(index, answer, type="", cluster=None):
    return Question(index, "?", (answer,), type, index if cluster is None else cluster)


# Of colours "red" is commonest (3 of 4), of counts "2" (2 of 3, one of them written "two").
QUESTIONS = [question(k, a, "colour") for k, a in enumerate(["red", "blue", "Red", "red"])]
QUESTIONS += [question(4 + k, a, "count") for k, a in enumerate(["2", "1", "two"])]
ANSWERS = ["red", "blue", "green", "Red.", "1", "1", "two"]


def test_by_hand():
    usual = commonest(QUESTIONS, "accuracy")
    assert usual == {"colour": "red", "count": "2"}
    result = scored("accuracy", QUESTIONS, ANSWERS, usual)
    assert result["accuracy"] == pytest.approx(5 / 7) and result["majority"] == pytest.approx(5 / 7)
    assert result["accuracy/colour"] == 3 / 4 and result["majority/colour"] == 3 / 4
    assert result["accuracy/count"] == pytest.approx(2 / 3) and result["majority/count"] == pytest.approx(2 / 3)
    assert result["macro"] == pytest.approx((3 / 4 + 2 / 3) / 2) and result["examples"] == 7
    assert result["over_majority"] == pytest.approx(0)
    assert result["over_majority_low"] < 0 < result["over_majority_high"]
    rows = result.rows["answers"]
    assert rows["accuracy"].tolist() == [1, 1, 0, 1, 0, 1, 1] and rows["majority"].tolist() == [1, 0, 1, 1, 1, 0, 1]
    table = result.artifacts["types"].rows
    assert [row[:2] for row in table] == [("all", 7), ("colour", 4), ("count", 3)]
    assert table[1][2].startswith("75.0% [") and table[1][3:] == ("red", "75.0%")


def test_the_commonest_answer_of_other_questions():
    """It may be wrong here, or there may be none for a type."""
    result = scored("accuracy", QUESTIONS, ANSWERS, {"colour": "blue"})
    assert result["majority/colour"] == 1 / 4 and result["majority/count"] == 0


def test_one_type_has_no_metrics_of_its_own():
    result = scored("accuracy", QUESTIONS[:4], ANSWERS[:4], {"colour": "red"})
    names = {"accuracy", "majority", "over_majority", "over_majority_low", "over_majority_high", "examples"}
    assert set(result) == names and set(result.rows) == {"answers"}


def test_the_error_rate_is_that_of_the_corpus():
    questions = [question(0, "kitten", "a"), question(1, "ab", "b"), question(2, "abcd", "b")]
    result = scored("cer", questions, ["sitting", "ab", "abc"], {})
    assert result["cer"] == pytest.approx(4 / 12) and result["cer/b"] == pytest.approx(1 / 6)
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["majority"] == pytest.approx(1)  # nothing written: every letter is missing


def test_other_metrics():
    asked = [Question(0, "?", ("yes",) * 2 + ("no",) * 8, "", 0), Question(1, "?", ("no",) * 10, "", 1)]
    assert scored("vqa_accuracy", asked, ["yes", "no"], {})["vqa_accuracy"] == pytest.approx((0.6 + 1) / 2)
    assert commonest(asked, "vqa_accuracy") == {"": "no"}
    assert scored("anls", asked, ["nope", "ho"], {})["anls"] == pytest.approx((0.5 + 0.5) / 2)


def test_intervals_draw_clusters(tmp_path):
    """Four records of one cluster are right or wrong together: as wide as if each cluster were one record."""
    right = np.random.default_rng(0).random(60) < 0.7
    alone = [question(k, "true") for k in range(60)]
    four = [question(4 * k + j, "true", cluster=k) for k in range(60) for j in range(4)]
    answers = ["true" if r else "false" for r in right]
    usual = {"": "false"}
    a = scored("accuracy", alone, answers, usual)
    b = scored("accuracy", four, np.repeat(answers, 4).tolist(), usual)
    assert (a["over_majority_low"], a["over_majority_high"]) == (b["over_majority_low"], b["over_majority_high"])
    assert a["over_majority"] == pytest.approx(right.mean()) and a["over_majority_low"] < right.mean()
    results.write(tmp_path, "nlvr", b, evaluator={}, weights="", step=None)
    lines = {line.metric: line for line in compare.compare([results.read(tmp_path)])}
    spread = lines["over_majority"].spread[0]
    assert (spread.low, spread.high) == pytest.approx((b["over_majority_low"], b["over_majority_high"]))


def test_a_type_keeps_its_interval_on_disk(tmp_path):
    names = [q._replace(type=f"{q.type}/x") for q in QUESTIONS]
    results.write(tmp_path, "vqa", scored("accuracy", names, ANSWERS, {}), evaluator={}, weights="", step=None)
    stored = results.read(tmp_path)
    line = next(line for line in compare.compare([stored]) if line.metric == "accuracy/colour/x")
    assert line.values == [3 / 4] and line.spread[0].low < 3 / 4 < line.spread[0].high


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "no"])), min_size=1),
    st.sampled_from(sorted(METRICS)),
)
def test_right_answers_score_full_and_types_make_up_the_whole(asked, metric):
    questions = [Question(k, "?", (answer,) * 4, type, k) for k, (type, answer) in enumerate(asked)]
    usual = commonest(questions, metric)
    result = scored(metric, questions, [answer for _, answer in asked], usual)
    assert result[metric] == (0 if metric == "cer" else 1)
    assert abs(result["over_majority"] - (result[metric] - result["majority"])) < 1e-9
    if metric != "cer":
        assert result["majority"] >= 1 / 3 or len({a for _, a in asked}) > 1
        assert result["over_majority"] >= 0
