"""Zero-shot classification: the class whose prompts lie nearest to the image (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.evaluate import cards
from vlm_jax.evaluate.base import TIE, Embedded, Evaluator, Predict, Result, embed_rows, embed_source
from vlm_jax.evaluate.calibration import calibration_error, softmax
from vlm_jax.evaluate.groups import by_group
from vlm_jax.report.artifacts import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Evaluator):
    """Top-1 and top-5 accuracy over a labelled source.

    A class is the mean of the unit-norm embeddings of its prompts, made unit-norm again.

    Args:
      source: gives `image` and `label`; its `class_names` are the classes, unless `class_names` is given. Where it has
        `group_names`, records have a `group` too, the index of one of them or -1.
      templates: prompts with `{}` where the name goes. Here and in `class_names` "@FILE" means the lines of a file, and
        "@card:NAME" the templates of a protocol card (`vlm_jax.evaluate.cards`).
      bins: of the calibration error.
    """

    source: Any
    image: ImageTransform
    text: Text
    templates: tuple[str, ...] = ("a photo of a {}.",)
    class_names: tuple[str, ...] = ()
    bins: int = 15

    TIE: ClassVar[float] = TIE

    def validate(self) -> None:
        super().validate()
        if not self.names:
            raise UserError(f"{type(self).__name__} needs class names: a source that has them, or class_names=a,b,c.")
        bad = [t for t in self.prompts if t.count("{}") != 1]
        if bad or not self.prompts:
            raise UserError(
                f"ZeroShot.templates: {bad or 'none given'}; each is a prompt with one {{}}: 'a photo of a {{}}.'"
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return cards.expand(self.class_names) or tuple(self.source.class_names)

    @functools.cached_property
    def prompts(self) -> tuple[str, ...]:
        """The templates; CLIP_benchmark's files have `{c}` where the name goes."""
        return tuple(template.replace("{c}", "{}") for template in cards.expand(self.templates))

    def classes(self, predict: Predict, mesh: Mesh) -> Float[np.ndarray, "classes dim"]:
        """The unit-norm embedding of every class."""
        prompts = [template.format(name) for name in self.names for template in self.prompts]
        embedded = embed_rows(predict["text_embedding"], self.text(prompts), self.batch_size, mesh)
        means = embedded.reshape(len(self.names), len(self.prompts), -1).mean(1)
        return means / np.linalg.norm(means, axis=-1, keepdims=True).clip(1e-12)

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`top1`, `top5` (more than five classes), `mean_per_class`, and `examples`, the number scored.

        `ece`, the calibration error of the softmax over classes, where the model has a scale; `worst_group` and
        `group/NAME` where the source has groups.
        """
        groups = tuple(getattr(self.source, "group_names", ()))
        found = self.scores(predict, mesh, {"group": ()} if groups else {})
        scores, labels = found.vectors, found.columns["label"]
        rank = ranks(scores, labels, self.TIE)
        right = rank == 0
        per_class = [(name, rank[labels == i]) for i, name in enumerate(self.names) if (labels == i).any()]
        metrics = {
            "top1": float(right.mean()),
            "mean_per_class": float(np.mean([(r == 0).mean() for _, r in per_class])),
            "examples": float(len(labels)),
        }
        rows = {
            "index": found.columns["index"],
            "truth": np.array(self.names)[labels],
            "answer": np.array(self.names)[np.where(right, labels, _best_wrong(scores, labels))],
            "top1": right,
        }
        if len(self.names) > 5:
            metrics["top5"] = float((rank < 5).mean())
            rows["top5"] = rank < 5
        if (scale := self.scale(predict, mesh)) is not None:
            rows["confidence"] = softmax(scale * scores).max(1)
            metrics["ece"] = calibration_error(rows["confidence"], right, self.bins)
        if groups:
            metrics |= by_group(right, found.columns["group"], groups)
            rows["group"] = found.columns["group"]
        shown = [(name, len(r), f"{100 * (r == 0).mean():.1f}%") for name, r in per_class]
        table = Table("accuracy by class", ("class", "images", "top-1"), shown)
        return Result(metrics, {"classes": table}, {"images": rows})

    def scores(self, predict: Predict, mesh: Mesh, more: Mapping[str, tuple[int, ...]]) -> Embedded:
        """How well every class fits, as `vectors` [n, classes], of the records that have a class."""
        found = embed_source(predict["image_embedding"], self.source, self.image, self.batch_size, mesh, more)
        found = self.with_class(found)
        return dataclasses.replace(found, vectors=found.vectors @ self.classes(predict, mesh).T)

    def scale(self, predict: Predict, mesh: Mesh) -> float | None:
        """What scores are multiplied by to be logits of the classes; None where that is not known."""
        return float(meshes.gather(predict["logit_scale"](), mesh)) if "logit_scale" in predict else None

    def with_class(self, found: Embedded) -> Embedded:
        """The records that have a class. Raises UserError where none has, or one is unknown."""
        labels = found.columns.get("label", np.full(len(found.vectors), -1))
        if labels.max(initial=-1) < 0 or labels.max() >= len(self.names):
            what = f"a label {labels.max()}" if labels.max(initial=-1) >= 0 else "no label"
            raise UserError(
                f"{type(self).__name__}: {self.source.name} has {what}, where there are {len(self.names)} classes."
            )
        kept = labels >= 0
        return Embedded(found.vectors[kept], {name: values[kept] for name, values in found.columns.items()})


def _best_wrong(scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The highest class that is not the right one."""
    others = scores.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, 1)
    return others.argmax(1)


def ranks(
    scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n"], tie: float = TIE
) -> Int[np.ndarray, "n"]:
    """How many wrong classes score at least as high as the right one: ties (see `TIE`) count against the model."""
    right = np.take_along_axis(scores, labels[:, None], 1)
    return (scores >= right - tie).sum(1) - 1
