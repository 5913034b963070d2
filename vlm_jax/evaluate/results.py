"""Evaluations on disk: `FOLDER/results.json` with the metrics, and `FOLDER/NAME.npz` with a row for every example.

The folder is `WORKDIR/evaluations/STEP`, or the one that `python -m vlm_jax.evaluate run --output=FOLDER` was given.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import Result
from vlm_jax.redact import hidden_in
from vlm_jax.report.writers import replace_file

FILE, FORMAT = "results.json", 1
KEYS = {"metrics", "evaluator", "weights", "step", "protocol"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluator's result as it was stored.

    Attributes:
      evaluator: its node of the config, every value written out, secrets of URLs aside; {} where it was not known.
      weights: the workdir or the file of the model.
      step: of the checkpoint; None where there is none.
      file: the `.npz` of its rows.
      protocol: the card that the model was held against (`vlm_jax.evaluate.cards`), and what differs from it.
    """

    metrics: dict[str, float]
    evaluator: dict[str, Any]
    weights: str
    step: int | None
    file: Path
    protocol: dict[str, Any]

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Its tables of rows, see `Result`; {} where it has none.

        Raises: UserError for a file that is no such archive.
        """
        tables: dict[str, dict[str, np.ndarray]] = {}
        if not self.file.is_file():
            return tables
        try:
            with np.load(self.file, allow_pickle=False) as archive:
                for key in archive.files:
                    table, _, column = key.partition("/")
                    tables.setdefault(unquote(table), {})[column] = archive[key]
        except Exception as error:  # zipfile and numpy raise anything on broken bytes
            raise UserError(f"{self.file} can't be read: {error}.") from error
        return tables


def write(
    folder: Path,
    name: str,
    result: Result,
    *,
    evaluator: Mapping[str, Any],
    weights: str,
    step: int | None,
    card: str | None = None,
    differs: Sequence[str] = (),
) -> None:
    """Adds one evaluator's result to a folder, or replaces it there; see `Evaluation` for what goes with it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    stored = _load(file) if file.is_file() else {"format": FORMAT, "evaluations": {}}
    stored["evaluations"][name] = {
        "metrics": {key: _finite(value) for key, value in result.items()},
        "weights": weights,
        "step": step,
        "protocol": {"card": card, "differs": list(differs)},
        "evaluator": hidden_in(configs.plain(evaluator)) if evaluator else {},
    }
    tables = {quote(table, safe=""): columns for table, columns in result.rows.items()}  # columns may have a "/"
    columns = {f"{table}/{key}": column for table, columns in tables.items() for key, column in columns.items()}
    if columns:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **columns)
        replace_file(folder / f"{name}.npz", buffer.getvalue())
    replace_file(file, json.dumps(stored, indent=1).encode())


def read(path: str | Path) -> dict[str, Evaluation]:
    """The evaluations of a workdir (of each evaluator the last one), of a folder of results, or of a `results.json`.

    Raises: UserError where there are none, or the file is none that this program wrote.
    """
    path = Path(path)
    files = [path] if path.is_file() else [path / FILE]
    if (path / "evaluations").is_dir():
        steps = [entry for entry in (path / "evaluations").iterdir() if entry.name.isdigit()]
        files = [step / FILE for step in sorted(steps, key=lambda step: int(step.name))]
    found: dict[str, Evaluation] = {}
    for file in filter(Path.is_file, files):
        for name, entry in _load(file)["evaluations"].items():
            metrics = {key: math.nan if value is None else value for key, value in entry["metrics"].items()}
            kept = {key: entry[key] for key in ("evaluator", "weights", "step", "protocol")}
            found[name] = Evaluation(metrics=metrics, file=file.parent / f"{name}.npz", **kept)
    if not found:
        what = "no evaluations in it" if path.exists() else "no such file or folder"
        raise UserError(f"{path}: {what}; wanted is a workdir that was evaluated, or a {FILE}.")
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text())
        entries = stored["evaluations"].values()
        if stored["format"] != FORMAT or not all(KEYS <= set(e) for e in entries):
            raise ValueError(f"format {stored['format']!r}, wanted is {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no file of results: {type(error).__name__}: {error}.") from error
    return stored


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
