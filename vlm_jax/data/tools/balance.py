"""MetaCLIP's balancing (Xu et al. 2023, "Demystifying CLIP Data", section 3): captions that match entries of a list of
things, the frequent entries thinned out to about `t` records each, the rare ones kept whole."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vlm_jax.errors import UserError

# Thai, Lao, Burmese, Khmer, kana and Han put no spaces between words: each of their characters is one.
ALONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORDS = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+")
SHOWN = 20  # entries that the report lists


def words_of(text: str) -> list[str]:
    """Words without regard to case, width and punctuation."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


class Matcher:
    """Which entries occur in a text, as whole words: "art" is in "Art, modern" and not in "party".

    Entries are looked up by their words, so that a text costs its length times the lengths that entries have, however
    many there are.
    """

    def __init__(self, entries: Sequence[str]):
        """Raises: UserError where there is no entry with a word."""
        self.entries: list[str] = []
        self._numbers: dict[str, int] = {}
        for entry in entries:
            key = " ".join(words_of(entry))
            if key and key not in self._numbers:
                self._numbers[key] = len(self.entries)
                self.entries.append(entry.strip())
        if not self.entries:
            raise UserError("the list to balance by has no entries: wanted is one a line, or a JSON list of strings.")
        self._lengths = sorted({key.count(" ") + 1 for key in self._numbers})

    def __call__(self, text: str) -> set[int]:
        """Numbers of the entries in a text."""
        words, found = words_of(text), set()
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                number = self._numbers.get(" ".join(words[start : start + length]))
                if number is not None:
                    found.add(number)
        return found


def read_entries(path: str) -> list[str]:
    """The entries of a file: one a line, or a JSON list of strings as MetaCLIP publishes it. Raises: UserError."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--balance={path} cannot be read: {error}.") from error
    if not path.endswith(".json"):
        return text.splitlines()
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"--balance={path} is no JSON: {error}.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"--balance={path}: wanted is a JSON list of strings.")
    return entries


@dataclasses.dataclass(frozen=True)
class Matches:
    """Entries of each of n texts: those of text k are `entries[starts[k]:starts[k + 1]]`."""

    entries: Int[np.ndarray, "m"]
    starts: Int[np.ndarray, "n+1"]

    @classmethod
    def of(cls, found: Iterable[Iterable[int]]) -> Matches:
        entries, starts = array("q"), array("q", [0])
        for numbers in found:
            entries.extend(sorted(numbers))
            starts.append(len(entries))
        return cls(np.array(entries), np.array(starts))

    def take(self, which: Bool[np.ndarray, "n"]) -> Matches:
        """Those of some of the texts."""
        lengths = np.diff(self.starts)
        starts = np.concatenate([[0], np.cumsum(lengths[which])]).astype(np.int64)
        return Matches(self.entries[np.repeat(which, lengths)], starts)


def keep_probability(matches: Matches, entries: int, t: float) -> Float[np.ndarray, "n"]:
    """The probability that a text stays: that of at least one success where each of its entries succeeds with
    `min(1, t / count)`; 0 for a text without any."""
    counts = np.bincount(matches.entries, minlength=entries)
    chance = np.minimum(1, t / np.maximum(counts, 1))
    with np.errstate(divide="ignore"):
        misses = np.concatenate([np.log1p(-chance[matches.entries]), [0.0]])
    lengths = np.diff(matches.starts)
    missed = np.add.reduceat(misses, matches.starts[:-1]) if len(lengths) else np.zeros(0)
    return np.where(lengths > 0, -np.expm1(missed), 0.0)


def balance_report(matcher: Matcher, before: Matches, kept: Bool[np.ndarray, "n"], t: float) -> dict[str, Any]:
    """How often entries matched, before and after."""
    counts = np.bincount(before.entries, minlength=len(matcher.entries))
    after = np.bincount(before.take(kept).entries, minlength=len(matcher.entries))
    order = np.argsort(-counts, kind="stable")[:SHOWN]
    return {
        "t": t,
        "entries": len(matcher.entries),
        "entries_matched": int((counts > 0).sum()),
        "entries_above_t": int((counts > t).sum()),
        "unmatched_records": int((np.diff(before.starts) == 0).sum()),
        "most_matched": [[matcher.entries[k], int(counts[k]), int(after[k])] for k in order if counts[k]],
    }
