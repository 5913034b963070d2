"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, equations 1-3 and "CIDEr-D"), in pycocoevalcap's arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vlm_jax.evaluate.text_metrics.ngrams import Tokens, ngrams

N, SIGMA = 4, 6.0
Vector = dict[tuple[str, ...], float]


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Float[np.ndarray, " images"]:
    """The score of every image; the corpus' is their mean.

    It is 10 times the mean over k = 1..4 and over references of exp(-(c - r)^2 / (2 sigma^2)) times the cosine of two
    vectors of k-grams, of which the candidate's is clipped to the reference's in the product. A k-gram weighs its count
    times log(images / images with it in a reference), so that the same caption scores otherwise in another corpus, and
    nothing in one of a single image. As in pycocoevalcap the lengths c and r are numbers of bigrams.

    Args:
      references: at least one for every candidate.
    """
    found = Counter(
        gram for others in references for gram in set().union(*(ngrams(o, k + 1) for o in others for k in range(N)))
    )
    images = math.log(max(len(references), 1))

    def vectors(tokens: Tokens) -> list[Vector]:
        counts = [ngrams(tokens, k + 1) for k in range(N)]
        return [{g: c * (images - math.log(max(found[g], 1))) for g, c in of_k.items()} for of_k in counts]

    scores = []
    for candidate, others in zip(candidates, references, strict=True):
        mine = vectors(candidate)
        total = sum(_similarity(mine, vectors(other), _bigrams(candidate) - _bigrams(other)) for other in others)
        scores.append(10 * total / len(others))
    return np.array(scores)


def _bigrams(tokens: Tokens) -> int:
    return max(len(tokens) - 1, 0)


def _similarity(mine: list[Vector], theirs: list[Vector], difference: int) -> float:
    """The mean over k, with the penalty of a length that differs."""
    cosines = []
    for a, b in zip(mine, theirs):
        product = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
        norms = math.hypot(*a.values()) * math.hypot(*b.values())
        cosines.append(product / norms if norms else product)
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * sum(cosines) / N
