"""Several models side by side: metrics with confidence intervals, differences to the first on the same examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_jax.evaluate.bootstrap import Interval, intervals
from vlm_jax.evaluate.results import Evaluation

Tables = Mapping[str, Mapping[str, np.ndarray]]  # the rows of an evaluation
Column = tuple[np.ndarray, np.ndarray, list[np.ndarray]]  # values, clusters, and what tells the examples


@dataclasses.dataclass(frozen=True)
class Line:
    """A metric of all models; None where a model has it not, or nothing is known to draw an interval from.

    Attributes:
      values: as they were stored.
      spread: the interval of each.
      change: the interval of each difference to the first model, where both were given the same examples.
    """

    evaluator: str
    metric: str
    values: list[float | None]
    spread: list[Interval | None]
    change: list[Interval | None]


def compare(models: Sequence[Mapping[str, Evaluation]], **options) -> list[Line]:
    """A line for every metric of every evaluator that any model has; `options` go to `intervals`."""
    lines = []
    for name in dict.fromkeys(name for model in models for name in model):
        found = [model.get(name) for model in models]
        tables = [evaluation.rows() if evaluation else {} for evaluation in found]
        for metric in dict.fromkeys(metric for e in found if e for metric in e.metrics):
            values = [evaluation.metrics.get(metric) if evaluation else None for evaluation in found]
            lines.append(Line(name, metric, values, *_intervals([_column(t, metric) for t in tables], options)))
    return lines


def _column(tables: Tables, metric: str) -> Column | None:
    """The rows whose mean a metric is."""
    return next((found for columns in tables.values() if (found := told(columns, metric)) is not None), None)


def told(columns: Mapping[str, np.ndarray], metric: str) -> Column | None:
    """A metric's column of a table, the clusters that are drawn together, and what tells its examples from others."""
    if metric not in columns or not len(columns[metric]):
        return None
    cluster = columns.get("cluster", columns["index"])
    return columns[metric], cluster, [columns[key] for key in ("index", "truth", "subset") if key in columns]


def same_examples(a: Column | None, b: Column | None) -> bool:
    """Whether two models were given the same examples, in the same order."""
    return a is not None and b is not None and all(map(np.array_equal, a[2], b[2])) and len(a[2]) == len(b[2])


def _intervals(columns: list[Column | None], options: Mapping) -> tuple[list, list]:
    spread: list[Interval | None] = [None] * len(columns)
    change: list[Interval | None] = [None] * len(columns)
    for k, column in enumerate(columns):
        if column is None:
            continue
        if k and same_examples(columns[0], column):
            both = np.stack([columns[0][0], column[0]])
            (_, spread[k]), (_, change[k]) = intervals(both, column[1], **options)
        else:
            spread[k] = intervals(column[0][None], column[1], **options)[0][0]
    return spread, change


def cells(line: Line) -> list[str]:
    """What a table shows of a line: `0.512 [0.480, 0.544]`, and of later models also `+0.018 [-0.010, +0.046]`.

    A star marks a difference whose interval does not hold 0.
    """
    out = []
    for value, spread, change in zip(line.values, line.spread, line.change):
        # fractions with the same number of decimals, so that they line up
        fraction = value is not None and (value == 0 or 1e-3 <= abs(value) <= 1)
        text = "-" if value is None else f"{value:.4f}" if fraction else f"{value:.6g}"
        if spread is not None:
            text += f" [{spread.low:.4f}, {spread.high:.4f}]"
        if change is not None:
            star = "*" if change.low > 0 or change.high < 0 else ""
            text += f"  {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]{star}"
        out.append(text)
    return out


def table(names: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """The lines as text, in columns of equal width."""
    rows = [("", *names)]
    evaluator = None
    for line in lines:
        if line.evaluator != evaluator:
            evaluator = line.evaluator
            rows.append((evaluator, *[""] * len(names)))
        rows.append((f"  {line.metric}", *cells(line)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(names) + 1)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
