"""Few-shot classification: ridge regression on the features of a few images a class, in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import Evaluator, Predict, Result
from vlm_jax.evaluate.features import Scaling, class_names, labelled
from vlm_jax.evaluate.zero_shot import ranks


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot(Evaluator):
    """Top-1 accuracy of ridge regression onto one-hot classes from a few training images of each.

    Each seed draws its own images. The penalty is the one that does best, over all seeds, on images of the training
    source that no seed trains on; of equally good ones the largest.

    Args:
      train: labelled source of which images are drawn. source: labelled source that is scored.
      shots: how many images of a class; one metric for each.
      seeds: how many draws; the metrics are means over them.
      held_out: images of a class that choose the penalty.
      l2: penalties to choose from, of features with mean 0 and mean square 1.
      function: what gives the features, one of the functions of `predict`.
    """

    train: Any
    source: Any
    image: ImageTransform
    shots: tuple[int, ...] = (1, 5, 10)
    seeds: int = 3
    held_out: int = 5
    l2: tuple[float, ...] = tuple(4.0**power for power in range(-5, 11))
    function: str = "image_embedding"

    def validate(self) -> None:
        super().validate()
        if not self.shots or min(self.shots) < 1 or self.seeds < 1 or self.held_out < 1:
            raise UserError(
                f"FewShot(shots={self.shots}, seeds={self.seeds}, held_out={self.held_out}): all are at least 1."
            )
        if not self.l2 or min(self.l2) <= 0:
            raise UserError(f"FewShot.l2={self.l2}: wanted are penalties above 0.")
        class_names(self.train, self.source, "FewShot")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`top1_5shot` and so on, `top1_5shot_std` over the seeds, `examples`, the number scored."""
        names = class_names(self.train, self.source, "FewShot")
        train, test = (
            labelled(predict, self.function, source, self.image, self.batch_size, mesh, len(names))
            for source in (self.train, self.source)
        )
        draws = [self._draw(train.labels, names, seed) for seed in range(self.seeds)]
        metrics, rows = {}, {"index": test.index, "truth": np.array(names)[test.labels]}
        for shots in self.shots:
            solved = []
            for held, pools in draws:
                chosen = np.concatenate([pool[:shots] for pool in pools])
                scaling = Scaling.of(train.features[chosen])
                weights = ridge(scaling(train.features[chosen]), np.eye(len(names))[train.labels[chosen]], self.l2)
                judge = [
                    (ranks(apply(w, scaling(train.features[held])), train.labels[held]) == 0).mean() for w in weights
                ]
                solved.append((scaling, weights, judge))
            means = np.mean([judge for _, _, judge in solved], axis=0)
            best = max(range(len(self.l2)), key=lambda i: (round(means[i], 9), self.l2[i]))
            right = np.stack(
                [ranks(apply(w[best], scale(test.features)), test.labels) == 0 for scale, w, _ in solved], axis=1
            )
            name = f"top1_{shots}shot"
            rows[name] = right.mean(1)
            metrics |= {name: float(right.mean()), f"{name}_std": float(right.mean(0).std())}
        return Result({**metrics, "examples": float(len(test.labels))}, rows={"images": rows})

    def _draw(
        self, labels: Int[np.ndarray, "n"], names: Sequence[str], seed: int
    ) -> tuple[Int[np.ndarray, "held"], list[np.ndarray]]:
        """Images that choose the penalty, the same for all seeds, and of each class the others in this seed's order."""
        common, own = (
            np.random.Generator(np.random.Philox(key=[seed, stream])) for seed, stream in ((0, 0), (seed, 1))
        )
        held, pools = [], []
        for label, name in enumerate(names):
            images = common.permutation(np.flatnonzero(labels == label))
            if not len(images):  # a class that the training source does not show can't be recognised
                continue
            if len(images) < self.held_out + max(self.shots):
                raise UserError(
                    f"FewShot: {self.train.name} has {len(images)} images of class {name!r}; wanted are "
                    f"{max(self.shots)} to train on and {self.held_out} held out."
                )
            held.append(images[: self.held_out])
            pools.append(own.permutation(images[self.held_out :]))
        return np.concatenate(held), pools


def ridge(
    features: Float[np.ndarray, "n dim"], targets: Float[np.ndarray, "n classes"], l2: Sequence[float]
) -> list[tuple[Float[np.ndarray, "dim classes"], Float[np.ndarray, "classes"]]]:
    """For every penalty the weights and the intercept that minimise |x w + b - y|^2 + l2 |w|^2, in f64.

    One decomposition serves all penalties (Hastie et al. 2009, eq. 3.47); the intercept is not penalised.
    """
    x, y = features.astype(np.float64), targets.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    projected = u.T @ (y - y_mean)
    out = []
    for penalty in l2:
        w = vt.T @ ((s / (s**2 + penalty))[:, None] * projected)
        out.append((w, y_mean - x_mean @ w))
    return out


def apply(
    weights: tuple[Float[np.ndarray, "dim classes"], Float[np.ndarray, "classes"]], x: Float[np.ndarray, "n dim"]
) -> Float[np.ndarray, "n classes"]:
    """The scores of the classes."""
    return x @ weights[0] + weights[1]
