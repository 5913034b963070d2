"""ROUGE-L by hand, and its invariants."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.rouge import longest_common, rouge_l

words = st.lists(st.sampled_from("abc"), max_size=6)


def test_by_hand():
    # "police the gunman" of 4 and 4 tokens has 2 in common with the reference in order: P = R = 1/2
    assert rouge_l("police kill the gunman".split(), ["the gunman police killed".split()]) == pytest.approx(0.5)
    # P = 2/2 by the first, R = 3/3 of none: 2/4 by the first, 1/1 by the second, so 1 and 1
    assert rouge_l(["a", "b"], [["a", "b", "c", "d"], ["b"]]) == pytest.approx(1)
    # P = 1, R = 1/2: (1 + 1.44) / 2 / (1/2 + 1.44)
    assert rouge_l(["a"], [["a", "b"]]) == pytest.approx(1.22 / 1.94)
    assert rouge_l([], [["a"]]) == 0


@given(words, words)
def test_the_longest_common_sequence_is_that_of_trying_all(a, b):
    def sequences(tokens):
        return {c for size in range(len(tokens) + 1) for c in itertools.combinations(tokens, size)}

    assert longest_common(a, b) == max(map(len, sequences(a) & sequences(b)))


@given(words, st.lists(words, min_size=1, max_size=3))
def test_invariants(candidate, references):
    score = rouge_l(candidate, references)
    assert 0 <= score <= 1 + 1e-12 and rouge_l(candidate, references[::-1]) == score
    assert rouge_l(candidate, [*references, candidate]) == pytest.approx(1)
