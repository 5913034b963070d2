"""Which source each row of a run comes from: a pure function of (seed, names, weights, row), random access."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

# Rows in which each source has exactly its share, in whole rows. It bounds how small a weight may be (one row of it),
# and what a look-up costs (a sort of so many numbers, once a window).
WINDOW = 2**16


@dataclasses.dataclass(frozen=True)
class Apportionment:
    """Rows 0, 1, 2, ... of a run, each given to one of several sources in proportion to their weights.

    Every window of `WINDOW` rows holds the same number of rows of a source (`shares`, by largest remainder). Inside a
    window the n rows of a source are drawn one from each n-th of it ("stratified" or "jittered" sampling), so that of
    any first p rows of the window its number differs from p * share by less than 1 + share * (number of sources),
    and no stride through the rows sees one source more than another.

    Attributes:
      names: of the sources, sorted and distinct: what is drawn depends on them.
      weights: none negative, not all zero.
      seed: of the places in a window.
      begin: the row from which on this holds; `already` rows of each source came before it.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    seed: int = 0
    begin: int = 0
    already: tuple[int, ...] = ()

    @property
    def shares(self) -> Int64[np.ndarray, "sources"]:
        """Rows of each source in a window."""
        return np.array(_shares(self.weights), np.int64)

    def __call__(self, rows: Int64[np.ndarray, "n"]) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """The source of each row (an index into `names`), and how many earlier rows that source has had."""
        windows, places = np.divmod(np.asarray(rows, np.int64) - self.begin, WINDOW)
        sources, turns = np.empty_like(places), np.empty_like(places)
        for window in np.unique(windows):
            inside = windows == window
            of_place, turn_of_place = self._window(int(window))
            sources[inside], turns[inside] = of_place[places[inside]], turn_of_place[places[inside]]
        return sources, turns + windows * self.shares[sources] + self._already[sources]

    def before(self, row: int) -> Int64[np.ndarray, "sources"]:
        """How many of the first `row` rows each source has had."""
        window, place = divmod(row - self.begin, WINDOW)
        inside = np.bincount(self._window(window)[0][:place], minlength=len(self.names))
        return self._already + window * self.shares + inside

    @property
    def _already(self) -> Int64[np.ndarray, "sources"]:
        return np.array(self.already or (0,) * len(self.names), np.int64)

    def _window(self, window: int):
        return _window(self.names, tuple(self.shares.tolist()), self.seed, window)


@functools.lru_cache(maxsize=64)
def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """`WINDOW` divided in proportion to the weights: whole parts, then one more to the largest remainders."""
    exact = [Fraction(weight) for weight in weights]
    quotas = [WINDOW * weight / sum(exact) for weight in exact]
    shares = [int(quota) for quota in quotas]
    remainders = sorted(range(len(weights)), key=lambda i: shares[i] - quotas[i])
    for i in remainders[: WINDOW - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


@functools.lru_cache(maxsize=4)
def _window(names: tuple[str, ...], shares: tuple[int, ...], seed: int, window: int):
    """Of each place of a window its source, and how many earlier places of the window are that source's."""
    sources = np.repeat(np.arange(len(names)), shares)
    turns = np.concatenate([np.arange(share) for share in shares])
    moments = [(np.arange(n) + _random(n, name, seed, window)) / n for name, n in zip(names, shares) if n]
    order = np.argsort(np.concatenate(moments), kind="stable")
    return sources[order].astype(np.uint16), turns[order].astype(np.uint16)  # both below WINDOW


def _random(count: int, name: str, seed: int, window: int) -> np.ndarray:
    """Numbers in [0, 1), a function of (seed, name, window)."""
    key = hashlib.sha256(f"{seed}\0{name}\0{window}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8"))).random(count)
