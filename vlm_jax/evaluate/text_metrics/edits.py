"""Scores by edit distance: character and word error rate, and ANLS for text read in images."""

from __future__ import annotations

from collections.abc import Sequence

ANLS_THRESHOLD = 0.5


def distance(a: Sequence, b: Sequence) -> int:
    """Insertions, deletions and substitutions that make `a` into `b`, at least (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def error_rate(candidates: Sequence[Sequence], references: Sequence[Sequence]) -> float:
    """Edits over the length of the references, both summed over all pairs: of strings the character error rate, of
    lists of words the word error rate. It is 0 where all are equal, and has no upper bound.

    References without anything in them count as one character together, so that it is finite.
    """
    edits = sum(distance(a, b) for a, b in zip(candidates, references, strict=True))
    return edits / max(sum(map(len, references)), 1)


def anls(answer: str, references: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the closest reference (Biten et al. 2019, equation 1), averaged by others.

    It is 1 - distance / length of the longer text, and 0 where that is below 0.5: a slip in reading costs little, and
    what is another answer gains nothing. Case and runs of whitespace do not count. At exactly 0.5 it counts, as in the
    evaluation of DocVQA; the paper's equation has 0 there.
    """
    mine = " ".join(answer.lower().split())
    best = 0.0
    for reference in references:
        other = " ".join(reference.lower().split())
        best = max(best, 1 - distance(mine, other) / max(len(mine), len(other), 1))
    return best if best >= ANLS_THRESHOLD else 0.0
