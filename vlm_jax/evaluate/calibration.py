"""Calibration: whether a model that says 80% is right in 80 of 100 cases."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def softmax(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Along the last axis, in f64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    exponents = np.exp(shifted)
    return exponents / exponents.sum(-1, keepdims=True)


def calibration_error(confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): bins of equal width, each open below and closed above.

    The mean over examples of |accuracy - mean confidence| of the example's bin; bin b of B holds confidences in
    ((b - 1) / B, b / B], and the first one 0 too.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    sums = lambda values: np.bincount(which, values, minlength=bins)
    return float(np.abs(sums(right.astype(np.float64)) - sums(confidence.astype(np.float64))).sum() / len(confidence))
