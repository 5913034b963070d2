"""BLEU of corpora small enough to count by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.bleu import bleu

words = st.lists(st.sampled_from("abcde"), min_size=4, max_size=8)


def test_by_hand():
    """Papineni et al., section 2.1: "the" seven times matches two of seven; no bigram matches."""
    candidate, references = "the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]
    one, two = bleu([candidate.split()], [[r.split() for r in references]], 2)
    assert one == pytest.approx(2 / 7) and two == pytest.approx(0, abs=1e-6)


def test_a_short_candidate_is_penalised_by_the_closest_reference():
    candidate, references = "a b c".split(), ["a b c d".split(), "a b c d e f g".split()]
    assert bleu([candidate], [references], 1)[0] == pytest.approx(math.exp(1 - 4 / 3))
    assert bleu([candidate], [[*references, "a b".split()]], 1)[0] == pytest.approx(1)  # of 2 and 4 the shorter


def test_counts_are_of_the_corpus_not_means_over_images():
    candidates, references = ["a b", "x"], ["a b", "y"]
    split = lambda texts: [text.split() for text in texts]
    assert bleu(split(candidates), [[r] for r in split(references)], 1)[0] == pytest.approx(2 / 3)


@given(st.lists(words, min_size=1, max_size=5), st.randoms())
def test_a_caption_that_is_its_reference_is_the_best_there_is_in_any_order(captions, random):
    references = [[caption, caption[::-1]] for caption in captions]
    assert bleu(captions, references) == pytest.approx([1] * 4)
    others = [[word.upper() for word in captions[0]], *captions[1:]]
    order = random.sample(range(len(captions)), len(captions))
    same = bleu([others[k] for k in order], [references[k][::-1] for k in order])
    assert bleu(others, references) == pytest.approx(same)


def test_every_candidate_needs_references():
    with pytest.raises(ValueError, match="shorter"):
        bleu([["a"], ["b"]], [[["a"]]])
