"""Features of labelled images, which probes and neighbours are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Predict, embed_source


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images of a source that have a class: features, classes, and the records that they are."""

    features: Float[np.ndarray, "n dim"]
    labels: Int[np.ndarray, "n"]
    index: Int[np.ndarray, "n"]

    @property
    def unit(self) -> Float[np.ndarray, "n dim"]:
        """The features at length 1."""
        return self.features / np.linalg.norm(self.features, axis=1, keepdims=True).clip(1e-12)


def class_names(train: Any, source: Any, who: str) -> tuple[str, ...]:
    """The classes that both sources have. Raises UserError where they have none, or other ones."""
    names = tuple(train.class_names)
    if not names or names != tuple(source.class_names):
        raise UserError(
            f"{who}: {train.name} has {len(names)} classes and {source.name} {len(source.class_names)}; "
            "wanted are the same in both."
        )
    return names


def labelled(
    predict: Predict, function: str, source: Any, image: ImageTransform, batch_size: int, mesh: Mesh, classes: int
) -> Labelled:
    """`predict[function]` of the images that have a class.

    Raises: UserError where there is no such function, no image has a class, or one has an unknown one.
    """
    if function not in predict:
        raise UserError(f"the model gives no {function!r}; {closest(function, predict)}")
    found = embed_source(predict[function], source, image, batch_size, mesh)
    labels = found.columns["label"]
    kept = labels >= 0
    if not kept.any() or labels.max() >= classes:
        what = f"a label {labels.max()}, where there are {classes} classes" if kept.any() else "no label"
        raise UserError(f"{source.name} has {what}.")
    return Labelled(found.vectors[kept], labels[kept], found.columns["index"][kept])


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Brings features to mean 0 and mean square 1, over all dimensions: a penalty means the same to any model."""

    mean: Float[np.ndarray, "dim"]
    scale: float

    @classmethod
    def of(cls, features: Float[np.ndarray, "n dim"]) -> Scaling:
        """The scaling that does it for these."""
        mean = features.mean(0, dtype=np.float64)
        square = np.square(features - mean).mean()
        # features that differ by no more than their last bits stay as they are: one value for all
        return cls(mean, 1 / np.sqrt(square) if square > 1e-12 else 0.0)

    def __call__(self, features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        return ((features - self.mean) * self.scale).astype(np.float32)
