"""Choosing the caption of an image: SugarCrepe, ARO, and whatever else sets wrong captions against a right one."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import TIE, Evaluator, Predict, Result, embed_rows, embed_source
from vlm_jax.evaluate.readers.base import Choice
from vlm_jax.report.artifacts import Table

Scored = tuple[int, Choice, Float[np.ndarray, "texts"]]  # the record, and a score of each of its texts
MOST_SUBSETS = 16  # with more, each is in the table alone and no metric of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choose(Evaluator):
    """How often the right caption lies nearer to the image than every wrong one; a tie is wrong.

    Args:
      source: `source.choices(i)` are the choices of image i, see `readers.base.Choice`.
      least: cases that a subset must have to count in `macro` (ARO's attribution: 25).
      left_out: subsets that do not count in it (ARO's relation: `readers.aro.LEFT_OUT`).
    """

    source: Any
    image: ImageTransform
    text: Text
    least: int = 1
    left_out: tuple[str, ...] = ()

    TIE: ClassVar[float] = TIE

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`accuracy` over all cases, `macro` the mean over subsets, `SUBSET` of each; `examples`, the cases scored."""
        right, answers, found = [], [], self.scored(predict, mesh)
        for _, choice, scores in found:
            right.append(bool((scores[0] > scores[1:] + self.TIE).all()))
            answers.append(choice.texts[0 if right[-1] else 1 + int(scores[1:].argmax())])
        rows = {
            "index": np.array([record for record, _, _ in found]),
            "accuracy": np.array(right),
            "subset": np.array([choice.subset for _, choice, _ in found]),
            "truth": np.array([choice.texts[0] for _, choice, _ in found]),
            "answer": np.array(answers),
        }
        return self._result(rows)

    def scored(self, predict: Predict, mesh: Mesh) -> list[Scored]:
        """All choices to be made, with a score of each text."""
        images = embed_source(predict["image_embedding"], self.source, self.image, self.batch_size, mesh)
        cases = self.cases(images.columns["index"])
        texts = sorted({text for _, _, choice in cases for text in choice.texts})
        place = {text: k for k, text in enumerate(texts)}
        embedded = embed_rows(predict["text_embedding"], self.text(texts), self.batch_size, mesh)
        return [
            (record, choice, embedded[[place[text] for text in choice.texts]] @ images.vectors[row])
            for row, record, choice in cases
        ]

    def cases(self, records: Int[np.ndarray, "n"]) -> list[tuple[int, int, Choice]]:
        """The choices of these records: row, record, and what to choose from. Raises UserError where there are none."""
        found = [
            (row, record, choice)
            for row, record in enumerate(records.tolist())
            for choice in self.source.choices(record)
        ]
        if not found:
            what = f"none of the {len(self.source)} images of {self.source.name} can be read"
            raise UserError(f"{type(self).__name__}: {what}.")
        return found

    def _result(self, rows: dict[str, np.ndarray]) -> Result:
        parts = {
            subset: rows["accuracy"][rows["subset"] == subset] for subset in dict.fromkeys(rows["subset"].tolist())
        }
        means = {subset: float(right.mean()) for subset, right in parts.items()}
        counted = [means[s] for s in parts if s not in self.left_out and len(parts[s]) >= self.least]
        metrics = {"accuracy": float(rows["accuracy"].mean())}
        if len(parts) > 1 and counted:
            metrics["macro"] = float(np.mean(counted))
        if 1 < len(parts) <= MOST_SUBSETS:
            metrics |= means
        table = [(subset, len(right), f"{100 * means[subset]:.1f}%") for subset, right in parts.items()]
        artifacts = {"subsets": Table("accuracy by subset", ("subset", "cases", "accuracy"), table)}
        own = {s: {"index": rows["index"][rows["subset"] == s], s: right} for s, right in parts.items() if s in metrics}
        return Result({**metrics, "examples": float(len(rows["index"]))}, artifacts, {"cases": rows, **own})
