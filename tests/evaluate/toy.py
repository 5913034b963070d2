"""A model without parameters for tests: an image's embedding is its corner, a text's is looked up in a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.text import Text

IMAGE = ImageTransform(size=4)
TEXT = Text(length=64)


def picture(vector) -> np.ndarray:
    """A 4 x 4 image that carries up to 48 numbers in [0, 1], in steps of 1/255."""
    image = np.zeros(48, np.uint8)
    image[: len(vector)] = np.round(255 * np.asarray(vector))
    return image.reshape(4, 4, 3)


def predict(dim: int, texts: Mapping[str, Any], scale: float | None = None) -> dict:
    """Embeddings of `picture`s and of `texts`, unit-norm; a text that is not listed is a mistake of the test."""
    rows = jnp.asarray(TEXT(list(texts)))
    table = jnp.asarray(np.array([np.asarray(vector, np.float32) for vector in texts.values()]))

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True).clip(1e-6)

    @jax.jit
    def image_embedding(image):
        return unit(image.reshape(len(image), -1)[:, :dim].astype(jnp.float32) / 255)

    @jax.jit
    def text_embedding(tokens):
        same = (rows[None] == tokens[:, None]).all(2)
        return unit(table)[same.argmax(1)]

    functions = {"image_embedding": image_embedding, "text_embedding": text_embedding}
    return functions if scale is None else functions | {"logit_scale": lambda: jnp.float32(scale)}


def collapsed(dim: int = 8) -> dict:
    """One and the same embedding for whatever comes, up to what a batch's shape does to the last bit."""
    vector = np.random.default_rng(0).normal(size=dim).astype(np.float32)
    vector /= np.linalg.norm(vector)
    return {
        "image_embedding": lambda x: jnp.broadcast_to(vector, (len(x), dim)),
        "text_embedding": lambda x: jnp.broadcast_to(vector, (len(x), dim)),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Records as they are given."""

    records: tuple[dict, ...]
    class_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    name: str = "toy"
    fingerprint: str = "0"

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]
