"""The official normalisation by examples, and VQA accuracy by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.vqa import exact_match, normalise, vqa_accuracy

# What the official script (vqaEval.py: processPunctuation, then processDigitArticle) gives for these.
OFFICIAL = {
    "The Two dogs.": "2 dogs",
    "None": "0",
    "a/b": "b",
    "red/blue": "red blue",
    "red, blue": "red blue",
    "red,blue": "red blue",
    "10,000": "10000",
    "1,000 red-blue": "1000 redblue",  # a comma between digits: marks go without leaving a space
    "black - white": "black white",
    "3.5 miles": "3.5 miles",
    "st. louis": "st louis",
    "dont": "don't",
    "couldntve": "couldntve",
    "couldnt've": "couldn't've",
    "somebody'd": "somebodyd",
    "Yes!\n": "yes",
    "it's 5:30": "it's 5:30",
    "twas an apple": "'twas apple",
    "eleven": "eleven",
    "": "",
}


@pytest.mark.parametrize("answer", OFFICIAL)
def test_is_the_official(answer):
    assert normalise(answer) == OFFICIAL[answer]


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_the_number_of_people_that_agree(agreeing, accuracy):
    references = ["Yes."] * agreeing + [f"no {k}" for k in range(10 - agreeing)]
    assert vqa_accuracy("yes", references) == pytest.approx(accuracy)


def test_exact_match():
    assert exact_match("The dog.", ["cat", "dog"]) and exact_match("two", ["2"])
    assert not exact_match("dogs", ["dog"])


answers = st.sampled_from(["yes", "no", "2", "two", "a dog", "dog!", ""])


@given(answers, st.lists(answers, min_size=2, max_size=10), st.randoms())
def test_invariants(answer, references, random):
    accuracy = vqa_accuracy(answer, references)
    assert 0 <= accuracy <= 1
    assert (accuracy > 0) == (exact_match(answer, references))
    assert vqa_accuracy(answer, random.sample(references, len(references))) == pytest.approx(accuracy)
    assert vqa_accuracy(answer, [answer] * 10) == 1
