"""Metrics by name instead of by line: what is drawn together, what is best, what is thinned."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

LINES_A_PANEL = 6

# Panels of `train/NAME` in their order on the page; a name goes to the first panel whose pattern it matches.
TRAINING = {
    "Loss": r"loss|.*_loss|loss_.*",
    "Learning rate": r"(learning_rate|lr)(/.*|_.*)?",
    "Norms": r"(.*_)?norms?(_.*|/.*)?",
    "Logit scale": r"(.*/)?(logit_)?scale",
    "Logit bias": r"(.*/)?(logit_)?bias",
    "Examples per second": r"examples_per_s(_.*)?",
    "TFLOP/s per device": r"tflops?(_.*)?",
    "Model FLOP utilisation": r"mfu(_.*)?",
    "Milliseconds per step": r"step_ms",
    "Waiting for data": r"data_.*|.*wait.*",
}
LOGARITHMIC = ("Loss", "Norms")  # panels that get a logarithmic axis where their values span decades
# Clocks: they say where the run is, and as curves they would be straight lines.
CLOCKS = r"train/(eta.*|epochs?|examples(_seen)?|seconds|time.*)"
COUNT = "examples"  # an evaluator's number of examples: it belongs to its heading, not among its results
LOWER_IS_BETTER = r"(^|_)(loss|nll|perplexity|ppl|error|rank|fid|distance)(_|$)"


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One metric over time: `steps` int64 `[n]`, increasing, and `values` float64 `[n]`, which may be non-finite."""

    name: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        return np.isfinite(self.values)

    @property
    def constant(self) -> bool:
        """Whether every value is the same finite number."""
        return bool(np.isfinite(self.values[0]) and (self.values == self.values[0]).all())

    def last(self) -> tuple[int, float]:
        """Step and value of the newest measurement."""
        return int(self.steps[-1]), float(self.values[-1])

    def best(self) -> tuple[int, float] | None:
        """Step and value of the best finite measurement, the earliest of equals; None where all are non-finite."""
        if not self.finite.any():
            return None
        lower = re.search(LOWER_IS_BETTER, self.name.rsplit("/", 1)[-1])
        at = np.argmin(np.where(self.finite, self.values if lower else -self.values, np.inf))
        return int(self.steps[at]), float(self.values[at])


@dataclasses.dataclass(frozen=True)
class Panel:
    """Series drawn on one pair of axes, with the name each has there; `log` draws values on a logarithmic axis."""

    title: str
    lines: tuple[tuple[str, Series], ...]
    log: bool = False


def collect(lines: Iterable[Mapping[str, float]]) -> dict[str, Series]:
    """Series by name from the lines of a metrics file; of a step written twice the later line holds."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                found.setdefault(name, {})[int(line["step"])] = value
    series = {}
    for name, points in found.items():
        steps = np.array(sorted(points), np.int64)
        series[name] = Series(name, steps, np.array([points[step] for step in steps.tolist()], np.float64))
    return series


def thin(series: Series, limit: int = 1000) -> Series:
    """At most about `limit` points that draw the same curve: the least and greatest of each stretch of steps.

    A mean would hide the spikes one looks for. A stretch that has no finite value leaves one NaN, hence a gap.
    """
    if len(series.steps) <= limit:
        return series
    keep = []
    for stretch in np.array_split(np.arange(len(series.steps)), limit // 2):
        finite = stretch[series.finite[stretch]]
        if len(finite):
            keep += sorted({finite[np.argmin(series.values[finite])], finite[np.argmax(series.values[finite])]})
        else:
            keep.append(stretch[0])
    return Series(series.name, series.steps[keep], series.values[keep])


def training_panels(series: Mapping[str, Series]) -> list[Panel]:
    """Panels of the `train/` metrics: the known ones first, then one for each remaining name (or group `a/b`)."""
    groups: dict[str, list[tuple[str, Series]]] = {title: [] for title in TRAINING}
    for name in sorted(series, key=natural):
        if name.startswith("train/") and not re.fullmatch(CLOCKS, name):
            short = name.removeprefix("train/")
            title = next((t for t, pattern in TRAINING.items() if re.fullmatch(pattern, short)), short.split("/")[0])
            groups.setdefault(title, []).append((short, series[name]))
    return [dataclasses.replace(panel, log=_spans_decades(panel)) for panel in _panels(groups)]


def evaluation_panels(series: Mapping[str, Series]) -> list[Panel]:
    """Panels of the `eval/EVALUATOR/NAME` metrics: fractions of one evaluator together, anything else
    by itself. What never changes is left to the table."""
    groups: dict[str, list[tuple[str, Series]]] = {}
    for name in sorted(series, key=natural):
        if name.startswith("eval/") and name.rsplit("/", 1)[-1] != COUNT and not series[name].constant:
            evaluator, _, short = name.removeprefix("eval/").rpartition("/")
            values = series[name].values[series[name].finite]
            fraction = ((values >= 0) & (values <= 1)).all()
            title = evaluator or short if fraction else f"{evaluator}: {short}"
            groups.setdefault(title, []).append((short, series[name]))
    return _panels(groups)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `r5` before `r10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _spans_decades(panel: Panel) -> bool:
    if not panel.title.startswith(LOGARITHMIC):
        return False
    values = np.concatenate([line.values[line.finite] for _, line in panel.lines])
    return bool(len(values) and values.min() > 0 and values.max() > 30 * values.min())


def _panels(groups: Mapping[str, list[tuple[str, Series]]]) -> list[Panel]:
    panels = []
    for title, lines in groups.items():
        for start in range(0, len(lines), LINES_A_PANEL):
            part = f" ({start // LINES_A_PANEL + 1})" if len(lines) > LINES_A_PANEL else ""
            panels.append(Panel(title + part, tuple(lines[start : start + LINES_A_PANEL])))
    return panels
