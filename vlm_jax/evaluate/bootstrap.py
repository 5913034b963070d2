"""Confidence intervals by resampling examples (Efron 1979), several models at once on the same samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Interval(NamedTuple):
    """A mean and the interval that it lies in."""

    mean: float
    low: float
    high: float


def intervals(
    values: Float[np.ndarray, "models n"],
    cluster: np.ndarray,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[list[Interval], list[Interval]]:
    """Of every model the mean of its values, and that of their difference to the first model's; percentile intervals.

    What is drawn, with replacement, are clusters: rows of one image (its captions, its cases) depend on one another, so
    that resampling rows would give intervals that are too narrow. All models are seen on the same draws. The draws
    depend on the seed and on the number of clusters alone.

    Args:
      cluster: [n], equal for rows that are drawn together.
    """
    which = np.unique(cluster, return_inverse=True)[1].ravel()
    count = which.max() + 1
    sums = np.stack([np.bincount(which, row, minlength=count) for row in np.asarray(values, np.float64)])
    sizes = np.bincount(which, minlength=count)
    rng = np.random.Generator(np.random.Philox(key=seed))
    drawn = np.empty((samples, len(sums)))
    for k in range(samples):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        drawn[k] = sums @ times / (sizes @ times)
    means = sums.sum(1) / sizes.sum()
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]

    def each(mean, draws) -> list[Interval]:
        return [Interval(float(m), *np.quantile(d, tails).tolist()) for m, d in zip(mean, draws.T)]

    return each(means, drawn), each(means - means[0], drawn - drawn[:, :1])
