"""Images that a model draws for captions, as a model that was trained apart sees them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from vlm_jax import mesh as meshes
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Evaluator, Predict, Result, embed_source, rounded
from vlm_jax.interop import hub
from vlm_jax.report.artifacts import Gallery

Images = UInt8[np.ndarray, "n height width 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn(Evaluator):
    """Draws the class of each record of a source, and asks a classifier which of all classes it is.

    Args:
      source: gives `image` and `label`; its `class_names` are the classes.
      image, text, fusion: preprocessing, and how captions become prompts.
      template: the caption; "{}" is the class.
      classifier: a model that classifies by prompts, as `vlm_jax.load` takes it; None only draws.
      templates: its prompts.
      seed: of what is drawn.
      shown, per_class: classes in the report, and pictures of each.
    """

    source: Any
    image: ImageTransform
    text: Text
    fusion: Fusion
    template: str = "a picture of a {}"
    classifier: str | None = None
    templates: tuple[str, ...] = ("a picture of a {}",)
    seed: int = 0
    shown: int = 24
    per_class: int = 6

    def validate(self) -> None:
        """Raises UserError for values that do not fit together."""
        super().validate()
        if not self.source.class_names:
            raise UserError(f"Drawn: {self.source.name} has no class names.")
        if self.template.count("{}") != 1:
            raise UserError(f"Drawn.template={self.template!r}: it needs one '{{}}' for the class.")

    def check_files(self) -> None:
        """Raises UserError where the classifier is not there."""
        if self.classifier is not None and not hub.is_name(self.classifier) and not Path(self.classifier).exists():
            raise UserError(
                f"Drawn.classifier={self.classifier}: no such folder; --bind=Drawn.classifier=PATH names another, and "
                "None only draws."
            )

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`right`, the share of drawings that the classifier takes for the class that was asked for, and `examples`.

        `right_of_tokens` is that of the source's own images as they come back from their tokens, and `right_of_images`
        that of these images: no model draws better by this measure than its tokenizer lets it.
        """
        if "draw" not in predict:
            raise UserError(f"Drawn: the model gives no 'draw'; {closest('draw', predict)}")
        again = lambda image: predict["from_tokens"](predict["tokens"](image))
        own = embed_source(again, self.source, self.image, self.batch_size, mesh)
        index, labels = own.columns["index"], own.columns["label"]
        if (labels < 0).any():
            raise UserError(f"Drawn: record {index[labels.argmin()]} of {self.source.name} has no label.")
        names = np.array(self.source.class_names)
        images = self._drawn(predict, [self.template.format(name) for name in names[labels]], mesh)
        rows: dict[str, np.ndarray] = {"index": index, "truth": names[labels]}
        metrics = {"examples": float(len(index))}
        if self.classifier is not None:
            from vlm_jax.library import load  # which imports evaluators

            classifier = load(self.classifier, devices=list(mesh.devices.flat), batch_size=self.batch_size)
            given = np.stack([self.image(self.source[int(k)]["image"]) for k in index])
            answers = {"right": images, "right_of_tokens": own.vectors, "right_of_images": given}
            for name, shown in answers.items():
                answers[name] = classifier.classify(shown, names.tolist(), self.templates).probabilities.argmax(1)
                rows[name] = answers[name] == labels
                metrics[name] = float(rows[name].mean())
            rows["answer"] = names[answers["right"]]
        return Result(metrics, {"drawn": self._gallery(images, rows)}, {"images": rows})

    def _drawn(self, predict: Predict, captions: list[str], mesh: Mesh) -> Images:
        """An image of each caption; it depends on the number of the caption, not on its batch."""
        rows = self.fusion.prompts(captions, self.text)
        rows["number"] = np.arange(len(captions), dtype=np.int32)
        size = rounded(min(self.batch_size, len(captions)), mesh)
        mine = meshes.local_rows(mesh, size)
        out = []
        for start in range(0, len(captions), size):
            part = {name: array[start : start + size] for name, array in rows.items()}
            count = len(part["number"])
            whole = {k: np.concatenate([v, np.repeat(v[:1], size - count, axis=0)])[mine] for k, v in part.items()}
            batch = dict(meshes.put(whole, mine, size, mesh))
            keys = _keys(self.seed, batch.pop("number"))
            out.append(meshes.gather(predict["draw"](batch, keys), mesh)[:count])
        return np.concatenate(out)

    def _gallery(self, images: Images, rows: Mapping[str, np.ndarray]) -> Gallery:
        """The first drawings of each class, marked where a classifier has said what they are."""
        good = rows.get("right")
        out = []
        for name in list(dict.fromkeys(rows["truth"].tolist()))[: self.shown]:
            chosen = np.flatnonzero(rows["truth"] == name)[: self.per_class].tolist()
            told = lambda k: "" if good is None else f"seen as {rows['answer'][k]}"
            out.append((self.template.format(name),
                        [(images[k], told(k), None if good is None else bool(good[k])) for k in chosen]))  # fmt: skip
        return Gallery("drawn for captions", out)


@functools.partial(jax.jit, static_argnums=0)
def _keys(seed: int, numbers: Int[jax.Array, " n"]) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(numbers))
