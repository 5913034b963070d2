"""CIDEr-D against the paper's equations written out, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluate.text_metrics.cider import cider_d

words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4)


def cut(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def cosines(candidate, others, references, n):
    """Equation 2 for each reference, over explicit vectors of all n-grams, clipped and with the penalty of CIDEr-D."""
    grams = sorted({gram for text in [candidate, *others] for gram in cut(text, n)})
    holding = [sum(any(gram in cut(r, n) for r in of_image) for of_image in references) for gram in grams]
    inverse = np.array([math.log(len(references) / max(1, images)) for images in holding])
    mine, *theirs = (inverse * [cut(text, n).count(gram) for gram in grams] for text in [candidate, *others])
    for vector, other in zip(theirs, others):
        norms = np.linalg.norm(mine) * np.linalg.norm(vector)
        shorter = max(len(candidate) - 1, 0) - max(len(other) - 1, 0)
        cosine = np.minimum(mine, vector) @ vector / norms if norms else 0.0
        yield cosine * math.exp(-(shorter**2) / (2 * 6**2))


def written_out(candidates, references):
    return [
        10 * np.mean([[*cosines(candidate, others, references, n)] for n in (1, 2, 3, 4)])
        for candidate, others in zip(candidates, references)
    ]


@given(corpora)
def test_is_the_equations(corpus):
    candidates, references = map(list, zip(*corpus))
    np.testing.assert_allclose(cider_d(candidates, references), written_out(candidates, references), atol=1e-9)


def test_by_hand():
    """A word of one image of two weighs log 2, and so does one of none; without 3-grams 5 of 10 is the most."""
    references = [[["a", "b"]], [["c", "d"]]]
    np.testing.assert_allclose(cider_d([["a", "b"], ["c", "x"]], references), [5, 2.5 / 2])
    np.testing.assert_allclose(cider_d([["a"], ["a"]], references), [2.5 / math.sqrt(2) * math.exp(-1 / 72), 0])


@given(st.lists(words.filter(lambda w: len(w) > 3), min_size=2, max_size=4), st.randoms())
def test_a_caption_that_is_its_only_reference_scores_ten_in_any_order(captions, random):
    captions = [[f"{word}{k}" for word in caption] for k, caption in enumerate(captions)]
    references = [[caption] for caption in captions]
    np.testing.assert_allclose(cider_d(captions, references), 10)
    others = [captions[0][::-1], *captions[1:]]
    order = random.sample(range(len(captions)), len(captions))
    there = cider_d([others[k] for k in order], [references[k] for k in order])
    np.testing.assert_allclose(cider_d(others, references)[order], there)


def test_a_corpus_of_one_image_tells_nothing():
    assert cider_d([["a"]], [[["a"]]]) == pytest.approx([0])
