"""Failure cases as pictures: what all models get wrong, and what one does where another does not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import config as configs
from vlm_jax.data.conversations import images_of
from vlm_jax.data.image import ImageTransform, open_image
from vlm_jax.errors import UserError
from vlm_jax.evaluate.compare import Tables, same_examples, told
from vlm_jax.evaluate.results import Evaluation
from vlm_jax.redact import HIDDEN
from vlm_jax.report.artifacts import Gallery

SHOWN, SIDE = 12, 160  # pictures of a row; pixels


def galleries(
    names: Sequence[str], models: Sequence[Mapping[str, Evaluation]], shown: int = SHOWN
) -> tuple[dict[str, Gallery], list[str]]:
    """For every evaluator of the first model the cases, and notes on those whose pictures cannot be shown."""
    out, notes = {}, []
    for name, evaluation in models[0].items():
        tables = [model[name].rows() if name in model else {} for model in models]
        for table, columns in tables[0].items():
            metric = next((key for key in columns if key in evaluation.metrics), None)
            if metric is None or "truth" not in columns:
                continue
            others = [t.get(table, {}) for t in tables]
            paired = [k for k, other in enumerate(others) if same_examples(told(columns, metric), told(other, metric))]
            try:
                source = _source(evaluation.evaluator, table)
            except Exception as error:  # the data may be elsewhere, in any way
                notes.append(f"{name}: no pictures, its source can't be opened here: {error}".splitlines()[0])
                break
            rows = _rows([names[k] for k in paired], [others[k] for k in paired], metric, source, shown)
            if rows:
                out[f"{name}/{table}"] = Gallery(f"{name}: {metric}", rows)
    return out, notes


def _source(evaluator: Mapping[str, Any], table: str) -> Any:
    """The source that an evaluator's node describes; of one with parts, that of the part."""
    node = evaluator.get("source") or evaluator.get("parts", {}).get(table, {}).get("source")
    if node is None:
        raise UserError("its config was not stored.")
    _only_ours(node)
    text = json.dumps(node)
    if HIDDEN in text:
        raise UserError("its URL has a password or a signature, which results do not keep.")
    return configs.build(configs.from_json(text, "results"), image=ImageTransform(size=SIDE))


def _only_ours(node: Any) -> None:
    """Raises UserError for a component from elsewhere: a file of results must not say what code is run."""
    if isinstance(node, Mapping):
        target = node.get(configs.TARGET)
        if target is not None and not _is_ours(target):
            raise UserError(f"{target} is no source of vlm_jax.")
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            _only_ours(value)


def _is_ours(target: str) -> bool:
    module = target.rpartition(".")[0]
    return (
        module.startswith(("data.", "evaluate.readers.")) and importlib.util.find_spec(f"vlm_jax.{module}") is not None
    )


def _rows(names: Sequence[str], tables: Sequence[Tables], metric: str, source: Any, shown: int) -> list:
    right = np.stack([np.asarray(columns[metric]) > 0.5 for columns in tables])
    kinds = [(f"wrong by {' and '.join(names)}", ~right.any(0))]
    for k in range(1, len(names)):
        kinds += [
            (f"right by {names[0]}, wrong by {names[k]}", right[0] & ~right[k]),
            (f"wrong by {names[0]}, right by {names[k]}", ~right[0] & right[k]),
        ]
    rows = []
    for heading, chosen in kinds:
        cases = np.flatnonzero(chosen)
        pictures = [p for case in cases[:shown].tolist() for p in _case(names, tables, right, case, source)]
        if pictures:
            rows.append((f"{heading}: {len(cases):,} of {right.shape[1]:,}", pictures[:shown]))
    return rows


def _case(names: Sequence[str], tables: Sequence[Tables], right: np.ndarray, case: int, source: Any) -> list:
    """The pictures of one case: the image, what is true, and what each model said, or showed."""
    first = tables[0]
    truth = str(first["truth"][case])
    answers = [f"{n}: {t['answer'][case]}" for n, t in zip(names, tables) if "answer" in t]
    whole = "; ".join([truth, *answers])
    pictures = [(int(first["index"][case]), whole, None if "answer_index" in first else bool(right[:, case].all()))]
    if "other" in first:
        pictures.append((int(first["other"][case]), str(first["other_truth"][case]), None))
    for name, columns, good in zip(names, tables, right[:, case]):
        if "answer_index" in columns:
            pictures.append((int(columns["answer_index"][case]), f"{name} found this", bool(good)))
    return [(image, text, good) for record, text, good in pictures if (image := _picture(source, record)) is not None]


def _picture(source: Any, record: int) -> np.ndarray | None:
    try:
        return np.asarray(open_image(images_of(source[record])[0], SIDE))
    except Exception:  # a record that was there and is not now: the others are shown
        return None
