"""ROUGE-L (Lin 2004, section 3.1, equations 2-4), in pycocoevalcap's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_jax.evaluate.text_metrics.ngrams import Tokens

BETA = 1.2


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """(1 + b^2) P R / (R + b^2 P) with b = 1.2, in [0, 1].

    P and R are the longest common subsequence over the length of the candidate, and over that of the reference; each is
    the largest over references, so that the two may come from different ones. A text without tokens counts as one empty
    token.
    """
    candidate = candidate or [""]
    common = [(longest_common(candidate, other or [""]), len(other or [""])) for other in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / size for length, size in common)
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(a: Tokens, b: Tokens) -> int:
    """Tokens of the longest sequence that is left of both by leaving tokens out."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
