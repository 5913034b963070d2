"""Boxes that a model writes for what is described, against where it is."""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.prompted import Prompted
from vlm_jax.data.sources.located import REFER, Located
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Evaluator, Predict, Result, placed_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Referring(Evaluator):
    """One region of each image is described, and the model says its box (RefCOCO: Yu et al. 2016, arXiv:1608.00272).

    Of the regions of record k it is number k modulo their count, so that no place in the list is preferred.

    Args:
      prompted: reads the model's texts.
    """

    source: Located
    image: ImageTransform
    prompted: Prompted

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`accuracy`: how many boxes overlap the right one by more than half of their union; `iou`, the mean overlap;
        `no_box`, how many answers name no box; `examples`. Images without regions are left out.
        """
        if "generate" not in predict:
            raise UserError(f"Referring: the model gives no 'generate'; {closest('generate', predict)}")
        asked = self._asked()
        if not any(region is not None for region in asked):
            raise UserError(f"Referring: nothing in source {self.source.name!r} is described with a box.")
        self.prompted.check(self.image)
        prompts = self._prompts(asked)
        written, records = [], []
        for batch in placed_batches(self.source, self.image, self.batch_size, mesh):
            tokens = predict["generate"](batch.pixels, batch.place(prompts[batch.index]))
            written.append(meshes.gather(tokens, mesh)[batch.keep])
            records.append(batch.columns["index"])
        records = np.concatenate(records)
        answers = dataclasses.replace(self.prompted.text, bos=False).decode(np.concatenate(written))
        told = [k for k, record in enumerate(records.tolist()) if asked[record] is not None]
        found = [self.source.read(answers[k]) for k in told]
        regions = [asked[record] for record in records[told].tolist()]
        overlaps = np.array([0.0 if box is None else iou(box, region[1]) for box, region in zip(found, regions)])
        rows = {
            "index": records[told],
            "iou": overlaps,
            "description": np.array([text for text, _ in regions]),
            "truth": np.array([self.source.written(box) for _, box in regions]),
            "answer": np.array([answers[k] for k in told]),
        }
        metrics = {
            "accuracy": float((overlaps > 0.5).mean()),
            "iou": float(overlaps.mean()),
            "no_box": float(np.mean([box is None for box in found])),
            "examples": float(len(told)),
        }
        return Result(metrics, {}, {"referring": rows})

    def _asked(self) -> list[tuple[str, tuple[float, ...]] | None]:
        """Of each record the description and the box that is asked for, or None where it has no region."""
        out = []
        for index in range(len(self.source)):
            regions = self.source.regions(self.source.source[index], index)
            out.append(regions[index % len(regions)] if regions else None)
        return out

    def _prompts(self, asked: list) -> np.ndarray:
        """Rows of token ids, padded on the right; of records without a region any."""
        rows = [self.prompted.prompt(REFER if region is None else f"{REFER} {region[0]}") for region in asked]
        out = np.full((len(rows), max(map(len, rows))), self.prompted.text.pad_id, np.int32)
        for row, tokens in zip(out, rows):
            row[: len(tokens)] = tokens
        return out


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> Float[np.ndarray, ""]:
    """Intersection over union of two boxes [x0, y0, x1, y1]; 0 where one has no area."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inside = np.prod(np.maximum(sides, 0))
    area = lambda box: max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    union = area(a) + area(b) - inside
    return np.float64(inside / union if inside else 0)
