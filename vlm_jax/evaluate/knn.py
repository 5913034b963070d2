"""k nearest neighbours: the classes of the training images that lie nearest vote (Caron et al. 2021, DINO)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import TIE, Evaluator, Predict, Result, rounded
from vlm_jax.evaluate.features import class_names, labelled

QUERIES, KEYS = 512, 16_384  # of a block: queries on each device, training images on all


@dataclasses.dataclass(frozen=True, kw_only=True)
class KNN(Evaluator):
    """Top-1 accuracy of the vote of the `k` nearest training images, by cosine.

    What is undecided counts as wrong: where neighbours tie for the last places, the model is right only if it is right
    whichever of them are taken; where classes tie for the most votes, it is wrong.

    Args:
      train: labelled source that votes. source: labelled source that is scored.
      temperature: a neighbour of cosine s has exp(s / temperature) votes (DINO: 0.07).
      function: what gives the features, one of the functions of `predict`.
    """

    train: Any
    source: Any
    image: ImageTransform
    k: int = 20
    temperature: float = 0.07
    function: str = "image_embedding"

    def validate(self) -> None:
        super().validate()
        if self.k < 1 or self.temperature <= 0:
            raise UserError(f"KNN(k={self.k}, temperature={self.temperature}): wanted are k >= 1, temperature > 0.")
        class_names(self.train, self.source, "KNN")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`top1` of the weighted vote, `majority_top1` of one vote each, `examples`, the number scored."""
        classes = len(class_names(self.train, self.source, "KNN"))
        train, test = (
            labelled(predict, self.function, source, self.image, self.batch_size, mesh, classes)
            for source in (self.train, self.source)
        )
        if len(train.labels) < self.k:
            raise UserError(f"KNN.k={self.k}, but {self.train.name} has {len(train.labels)} labelled images.")
        keys, queries = train.unit, test.unit
        votes = [
            vote(queries, keys, train.labels, test.labels, self.k, temperature, classes, mesh)
            for temperature in (self.temperature, None)
        ]
        rows = {"index": test.index, "top1": votes[0], "majority_top1": votes[1]}
        rows["truth"] = np.array(self.source.class_names)[test.labels]
        metrics = {name: float(rows[name].mean()) for name in ("top1", "majority_top1")}
        return Result({**metrics, "examples": float(len(test.labels))}, rows={"images": rows})


def vote(
    queries: Float[np.ndarray, "n dim"],
    keys: Float[np.ndarray, "m dim"],
    key_labels: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "n"],
    k: int,
    temperature: float | None,
    classes: int,
    mesh: Mesh,
    blocks: tuple[int, int] = (QUERIES, KEYS),
) -> Bool[np.ndarray, "n"]:
    """Whether `labels` wins the vote of the k nearest keys, for each query; see `KNN` on ties.

    Queries are split over the devices, keys come in blocks: memory does not grow with n times m.

    Args:
      temperature: of the weights; None gives every neighbour one vote.
      blocks: queries on each device, and keys.
    """
    size = rounded(min(blocks[0] * meshes.batch_devices(mesh), len(queries)), mesh)
    mine = meshes.local_rows(mesh, size)
    everywhere = meshes.replicated(mesh)
    place = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index])
    put = lambda x: meshes.put({"x": x[mine]}, mine, size, mesh)["x"]

    def over_keys(step, held, x):
        for first in range(0, len(keys), blocks[1]):
            block, classes_of = (_padded(part[first : first + blocks[1]], blocks[1]) for part in (keys, key_labels))
            held = step(held, x, place(block), place(classes_of), min(blocks[1], len(keys) - first))
            jax.block_until_ready(held)  # blocks in flight together would take the memory of all
        return held

    out = []
    for start in range(0, len(queries), size):
        x, y = (put(_padded(part[start : start + size], size)) for part in (queries, labels))
        top = over_keys(functools.partial(_nearest, k), put(np.full((size, k), -np.inf, np.float32)), x)
        nothing = [put(np.zeros((size, classes), np.float32)) for _ in range(2)]
        sure, tied = over_keys(functools.partial(_count, temperature, top), nothing, x)
        won = _decide(k, temperature, top, sure, tied, y)
        out.append(meshes.gather(won, mesh)[: len(queries) - start])
    return np.concatenate(out)


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])


def _scores(x: Array, keys: Array, count: Array) -> Float[Array, "n m"]:
    """Cosines; those of padding are -inf."""
    scores = jnp.matmul(x, keys.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(jnp.arange(keys.shape[0]) < count, scores, -jnp.inf)


@functools.partial(jax.jit, static_argnums=0)
def _nearest(k: int, top: Array, x: Array, keys: Array, labels: Array, count: Array) -> Float[Array, "n k"]:
    """The k highest cosines so far."""
    found = jax.lax.top_k(_scores(x, keys, count), min(k, keys.shape[0]))[0]
    return jax.lax.top_k(jnp.concatenate([top, found], axis=1), k)[0]


@functools.partial(jax.jit, static_argnums=0)
def _count(temperature: float | None, top: Array, held: list, x: Array, keys: Array, labels: Array, count: Array):
    """Adds a block's votes by class of what is surely among the k nearest, and the number of what ties for the rest."""
    sure, tied = held
    scores, last = _scores(x, keys, count), top[:, -1:]
    inside, beside = scores > last + TIE, jnp.abs(scores - last) <= TIE
    one_hot = jax.nn.one_hot(labels, sure.shape[1])
    add = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    weights = jnp.where(inside, _weight(temperature, scores, top), 0)
    return [sure + add(weights, one_hot), tied + add(beside.astype(jnp.float32), one_hot)]


def _weight(temperature: float | None, scores: Array, top: Array) -> Array:
    """Votes of a neighbour; those of the nearest are 1, so that nothing overflows."""
    return jnp.ones_like(scores) if temperature is None else jnp.exp((scores - top[:, :1]) / temperature)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decide(k: int, temperature: float | None, top: Array, sure: Array, tied: Array, labels: Array) -> Bool[Array, "n"]:
    """Whether the label wins however the last places are given to those that tie for them."""
    inside = (top > top[:, -1:] + TIE).sum(1)
    places = (k - inside).astype(jnp.float32)[:, None]
    weight = _weight(temperature, top[:, -1:], top)
    own = jax.nn.one_hot(labels, sure.shape[1], dtype=bool)
    of_label = lambda x: jnp.where(own, x, 0).sum(1, keepdims=True)
    least = of_label(sure) + weight * jnp.maximum(0, places - (tied.sum(1, keepdims=True) - of_label(tied)))
    most = sure + weight * jnp.minimum(tied, places)
    # votes are sums of f32 in an order that depends on the blocks
    return (jnp.where(own, -jnp.inf, most) < least * (1 - TIE) - TIE).all(1)
