"""Captions as tokens, as pycocoevalcap has them: the Penn Treebank's rules, lower case, most punctuation left out."""

from __future__ import annotations

import re

# What Stanford's tokenizer takes for an abbreviation, so that its full stop is no token of its own.
_SHORT = "mr mrs ms dr prof st mt ft ave blvd rd jr sr co corp inc ltd vs etc".split()
_CLITICS = r"n't|'(?:s|m|d|ll|re|ve)"
_TOKEN = re.compile(
    rf"""
    https?://\S+ | \S+@\S+\.\w+
    | (?:{_CLITICS})(?!\w)
    | '(?:em|cause|n'|\d\ds)(?!\w)                       # 'em, rock 'n' roll, '90s
    | (?:{"|".join(_SHORT)}|no(?=\.\s?\d))\.(?!\w*\w\.\w)
    | (?:[^\W\d_]\.)+(?:[^\W\d_](?!\w))?                 # u.s., p.m., u.k
    | can(?=not(?!\w)) | (?:gon|wan)(?=na(?!\w)) | got(?=ta(?!\w)) | (?:gim|lem)(?=me(?!\w))
    | (?:o'|d'y|ma'a)\w+                                 # o'clock, d'you, ma'am
    | [^\W\d_]{{1,2}}&[^\W\d_]{{1,2}}(?!\w)              # at&t
    | \w+?(?=n't(?!\w))
    | \.\d+
    | \w+(?:(?:[-/.]|(?<=\d)[,:](?=\d))\w+)*
    | \.{{3,}} | -{{2,}} | [!?]+
    | \S
    """,
    re.VERBOSE,
)
_SAME = {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2013: "--", 0x2014: "--", 0x2026: "..."}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_LEFT_OUT = frozenset("\" ' ` . ? ! , : - -- ... ;".split())


def ptb_tokens(text: str) -> list[str]:
    """Tokens of one caption, by rules that follow those of Stanford's PTBTokenizer (CoreNLP 3.4.1, -lowerCase).

    "A man's dog, isn't it?" is a, man, 's, dog, is, n't, it. As in pycocoevalcap brackets stay (as -lrb-, ...), and so
    do runs of marks such as "!!". What it does not do: write currencies, fractions and degrees as Stanford's does, know
    more than the most common abbreviations, take the clitic off a word with hyphens (can't-miss), split 'tis and its
    kind.
    """
    tokens = _TOKEN.findall(text.lower().translate(_SAME))
    tokens = ["..." if t[0] == "." and len(t) > 2 and not t.strip(".") else t for t in tokens]
    tokens = ["--" if not t.strip("-") and len(t) > 1 else t for t in tokens]
    return [_BRACKETS.get(token, token) for token in tokens if token not in _LEFT_OUT]
