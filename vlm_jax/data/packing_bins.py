"""First-fit-decreasing bin packing, and sequences of tokens packed by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


def first_fit_decreasing(
    sizes: Int[np.ndarray, "items kinds"], room: Int[np.ndarray, "bins kinds"]
) -> Int[np.ndarray, "items"]:
    """The bin of each item, -1 where it fits into none: the largest first, each into the first bin with room for it.

    Items of equal size keep their order, so the result is a function of the arguments alone (Johnson 1973).

    Args:
      sizes: of each item, in several kinds of room (tokens of images, of texts, ...); "largest" is by the first.
      room: of each bin; what is taken is subtracted in place.
    """
    bins = np.full(len(sizes), -1)
    for item in np.argsort(-sizes[:, 0], kind="stable"):
        fits = (room >= sizes[item]).all(axis=1)
        if fits.any():
            bins[item] = fits.argmax()
            room[bins[item]] -= sizes[item]
    return bins


def left_out(rows: int, examples: int, of_rows: int, packed: Any) -> Any:
    """How many examples are in none of some rows, as a number of floats: part of a window has its share of them.

    Args:
      rows: that there are. examples: that become `of_rows` rows each time. packed: those that are in the rows.
    """
    return rows * examples / of_rows - packed


def pack_texts(
    texts: Sequence[Sequence[int]], *, length: int, rows: int, pad_id: int = 0
) -> tuple[dict[str, Int[np.ndarray, "rows length"]], list[int]]:
    """Token sequences packed whole into rows, for decoders: none is cut, and none is put across two rows.

    Returns:
      `text` (token ids), `text_segment_ids` (1, 2, ... within a row; 0 is padding) and `text_positions` (each sequence
      counts from 0), all int32; and the indices of the texts that did not fit.
    """
    sizes = np.array([len(text) for text in texts], np.int64).reshape(-1, 1)
    bins = first_fit_decreasing(sizes, np.full((rows, 1), length))
    packed = {name: np.zeros((rows, length), np.int32) for name in ("text", "text_segment_ids", "text_positions")}
    packed["text"] += np.int32(pad_id)
    ends, segments = [0] * rows, [0] * rows
    for text, row in zip(texts, bins.tolist()):
        if row < 0 or not len(text):
            continue
        place = slice(ends[row], ends[row] + len(text))
        ends[row], segments[row] = place.stop, segments[row] + 1
        packed["text"][row, place] = text
        packed["text_segment_ids"][row, place] = segments[row]
        packed["text_positions"][row, place] = np.arange(len(text))
    return packed, np.flatnonzero(bins < 0).tolist()
