"""BLEU of a corpus (Papineni et al. 2002, section 2.3), in pycocoevalcap's arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlm_jax.evaluate.text_metrics.ngrams import Tokens, ngrams

# pycocoevalcap's: a corpus without any match scores next to nothing instead of failing in a logarithm.
TINY, SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int = 4) -> list[float]:
    """BLEU-1 to BLEU-n, each in [0, 1].

    BLEU-N is BP (p_1 ... p_N)^(1/N). p_k is the share of the candidates' k-grams, over the whole corpus, that are in a
    reference of the same image, each counted at most as often as in the reference that has most of it. BP is
    exp(1 - r/c) where the candidates' length c is below r, the sum over images of the reference length that is closest
    to the candidate's (of two as close, the shorter one).

    Args:
      references: at least one for every candidate.
    """
    matched, counted = [0] * n, [0] * n
    length = wanted = 0
    for candidate, others in zip(candidates, references, strict=True):
        length += len(candidate)
        wanted += min((abs(len(other) - len(candidate)), len(other)) for other in others)[1]
        for k in range(n):
            mine, most = ngrams(candidate, k + 1), Counter()
            for other in others:
                most |= ngrams(other, k + 1)
            matched[k] += (mine & most).total()
            counted[k] += mine.total()
    ratio = (length + TINY) / (wanted + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for k in range(n):
        product *= (matched[k] + TINY) / (counted[k] + SMALL)
        scores.append(brevity * product ** (1 / (k + 1)))
    return scores
