"""Numbers of records that lie in parts, such as files, one after another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64


def starts_of(counts: Iterable[int]) -> Int64[np.ndarray, "parts+1"]:
    """The number of each part's first record, and behind them how many records there are."""
    return np.concatenate([[0], np.cumsum(list(counts), dtype=np.int64)])


def locate(starts: Int64[np.ndarray, "parts+1"], index: int) -> tuple[int, int]:
    """The part that holds record `index`, and its number there."""
    part = int(np.searchsorted(starts, index, side="right")) - 1
    return part, index - int(starts[part])
