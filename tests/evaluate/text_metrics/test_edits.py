"""Edit distance and what is made of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.edits import anls, distance, error_rate

texts = st.text("ab c", max_size=7)


def recursive(a: str, b: str) -> int:
    """The definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return recursive(a[1:], b[1:])
    return 1 + min(recursive(a[1:], b), recursive(a, b[1:]), recursive(a[1:], b[1:]))


def test_by_hand():
    assert distance("kitten", "sitting") == 3 and distance("", "abc") == 3
    assert error_rate(["kitten", "abc"], ["sitting", "abc"]) == pytest.approx(3 / 10)
    assert error_rate(["a red cat".split()], ["a cat".split()]) == pytest.approx(1 / 2)  # of words
    assert error_rate(["abc"], [""]) == 3


@given(texts, texts, texts)
def test_distance_is_the_definition_and_a_metric(a, b, c):
    assert distance(a, b) == recursive(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


@given(st.lists(st.tuples(texts, texts), min_size=1))
def test_the_error_rate_is_zero_where_all_are_equal_and_nowhere_else(pairs):
    candidates, references = zip(*pairs)
    assert (error_rate(candidates, references) == 0) == (candidates == references)


def test_anls_by_hand():
    """Figure 3 of Biten et al.: one slip costs little; at half the letters and below nothing is left."""
    assert anls("Coca Cola", ["coca  cola", "coke"]) == 1
    assert anls("cocacola", ["coca cola"]) == pytest.approx(1 - 1 / 9)
    assert anls("abcd", ["abxy"]) == 0.5 and anls("abcd", ["axyz"]) == 0
    assert anls("", [""]) == 1 and anls("", ["abc"]) == 0


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_anls_is_zero_or_at_least_a_half(answer, references):
    score = anls(answer, references)
    assert score == 0 or 0.5 <= score <= 1
    assert anls(answer, references[::-1]) == score and anls(answer.upper(), [*references, answer]) == 1
