"""What an evaluator can hand back beside its numbers: matrices, galleries and tables, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """Values `[n, m]` (float), such as the similarities of n images and m texts; labels may be empty."""

    title: str
    values: np.ndarray
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of pictures, each under a heading, such as the top retrieved images for a caption.

    A row is `(heading, [(image, caption, good), ...])`: image uint8 `[height, width, 3]`; `good` marks a right (True)
    or a wrong (False) answer, None marks nothing.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str, bool | None]]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Rows of cells (text or numbers) under named columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
