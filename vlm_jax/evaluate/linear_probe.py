"""Linear probe: multinomial logistic regression on features (Radford et al. 2021, appendix A.3)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import Evaluator, Predict, Result, rounded
from vlm_jax.evaluate.features import Scaling, class_names, labelled
from vlm_jax.evaluate.zero_shot import ranks

Weights = dict[str, Array]  # kernel [dim, classes], bias [classes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Evaluator):
    """Top-1 accuracy of logistic regression, by L-BFGS over all training images at once, on all devices.

    The penalty is the one that does best on a part of the training images that is held out, of equally good ones the
    largest; then all are trained on.

    Args:
      train: labelled source to train on. source: labelled source that is scored.
      l2: penalties to choose from: the loss is the mean cross-entropy + l2 / 2 |kernel|^2, of features with mean 0 and
        mean square 1. In scikit-learn's terms C = 1 / (l2 * images).
      held_out: fraction of the training images that chooses the penalty.
      max_steps: of L-BFGS, for each penalty.
      tolerance: of the largest entry of the gradient, at which it stops.
      function: what gives the features, one of the functions of `predict`.
    """

    train: Any
    source: Any
    image: ImageTransform
    l2: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    held_out: float = 0.2
    max_steps: int = 1000
    tolerance: float = 1e-5
    seed: int = 0
    function: str = "image_embedding"

    def validate(self) -> None:
        super().validate()
        if not self.l2 or min(self.l2) <= 0:
            raise UserError(f"LinearProbe.l2={self.l2}: wanted are penalties above 0.")
        if not 0 < self.held_out < 1:
            raise UserError(f"LinearProbe.held_out={self.held_out}: wanted is a fraction between 0 and 1.")
        if self.max_steps < 1 or self.tolerance <= 0:
            raise UserError(
                f"LinearProbe(max_steps={self.max_steps}, tolerance={self.tolerance}): wanted are values above 0."
            )
        class_names(self.train, self.source, "LinearProbe")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`top1`, `mean_per_class`; `l2`, the penalty that was chosen; `examples`, the number scored."""
        names = class_names(self.train, self.source, "LinearProbe")
        train, test = (
            labelled(predict, self.function, source, self.image, self.batch_size, mesh, len(names))
            for source in (self.train, self.source)
        )
        scaling = Scaling.of(train.features)
        x, y = scaling(train.features), train.labels
        order = np.random.Generator(np.random.Philox(key=self.seed)).permutation(len(y))
        held, rest = np.split(order, [round(self.held_out * len(y))])
        if not len(held) or not len(rest):
            raise UserError(f"LinearProbe: {self.train.name} has {len(y)} labelled images, too few to hold some out.")

        judged, weights = {}, None
        for l2 in sorted(self.l2, reverse=True):  # the solution of a larger penalty is where the next one begins
            weights = self._fit(x[rest], y[rest], len(names), l2, mesh, weights)
            judged[l2] = (ranks(scores(weights, x[held]), y[held]) == 0).mean()
        best = max(judged, key=lambda l2: (judged[l2], l2))
        weights = self._fit(x, y, len(names), best, mesh, None)

        right = ranks(scores(weights, scaling(test.features)), test.labels) == 0
        per_class = [right[test.labels == label].mean() for label in np.unique(test.labels)]
        metrics = {"top1": float(right.mean()), "mean_per_class": float(np.mean(per_class)), "l2": best}
        rows = {"index": test.index, "truth": np.array(names)[test.labels], "top1": right}
        return Result({**metrics, "examples": float(len(right))}, rows={"images": rows})

    def _fit(self, x, y, classes: int, l2: float, mesh: Mesh, start: Weights | None) -> Weights:
        return fit(x, y, classes, l2, mesh, start=start, max_steps=self.max_steps, tolerance=self.tolerance)


def scores(weights: Weights, x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n classes"]:
    """Logits of the classes."""
    return x @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])


def fit(
    x: Float[np.ndarray, "n dim"],
    y: Int[np.ndarray, "n"],
    classes: int,
    l2: float,
    mesh: Mesh,
    *,
    start: Weights | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-5,
) -> Weights:
    """Minimises the mean cross-entropy + l2 / 2 |kernel|^2 over all rows, which are split over the devices.

    Returns: `kernel` and `bias` as numpy arrays, the same on every process.
    """
    size = rounded(len(x), mesh)
    mine = meshes.local_rows(mesh, size)
    pad = lambda values: np.concatenate([values, np.zeros((size - len(x), *values.shape[1:]), values.dtype)])[mine]
    rows = {"x": pad(x.astype(np.float32)), "y": pad(y.astype(np.int32)), "counts": pad(np.ones(len(x), np.float32))}
    placed = meshes.put(rows, mine, size, mesh)
    if start is None:
        start = {"kernel": np.zeros((x.shape[1], classes), np.float32), "bias": np.zeros(classes, np.float32)}
    everywhere = meshes.replicated(mesh)
    start = {k: jax.make_array_from_callback(v.shape, everywhere, lambda at, v=v: v[at]) for k, v in start.items()}
    found = _minimise(placed, start, jnp.float32(l2), jnp.float32(tolerance), max_steps)
    return {name: meshes.gather(value, mesh) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=4)
def _minimise(rows: dict[str, Array], start: Weights, l2: Array, tolerance: Array, max_steps: int) -> Weights:
    def loss(weights: Weights) -> Float[Array, ""]:
        logits = jnp.matmul(rows["x"], weights["kernel"], precision=jax.lax.Precision.HIGHEST) + weights["bias"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, rows["y"])
        data = (each * rows["counts"]).sum() / rows["counts"].sum()
        return data + l2 / 2 * jnp.square(weights["kernel"]).sum()

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def largest(gradient: Weights) -> Float[Array, ""]:
        return jnp.max(jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(gradient)]))

    def goes_on(carry) -> Array:
        _, _, step, gradient = carry
        return (step < max_steps) & (largest(gradient) > tolerance)

    def step(carry):
        weights, state, count, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=loss)
        weights = optax.apply_updates(weights, updates)
        return weights, state, count + 1, optax.tree.get(state, "grad")

    carry = (start, optimizer.init(start), jnp.int32(0), jax.grad(loss)(start))
    return jax.lax.while_loop(goes_on, step, carry)[0]
