"""The symmetric softmax contrastive loss of CLIP (InfoNCE), on one device or over the axes of a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .blocks import all_rows, count_pairs, positives, similarities
from .inputs import Pairs, check_pairs, check_scalar

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def infonce_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    scale: Float[Array, ""],
    *,
    ids: Int[Array, "batch"] | None = None,
    mask: Bool[Array, "batch"] | None = None,
    label_smoothing: float = 0.0,
    axis_name: str | tuple[str, ...] | None = None,
    group_size: int | None = None,
) -> Float[Array, ""]:
    """Mean over the global batch of the cross-entropies image to text and text to image.

    L = 1/2B sum_i [CE(target_i, softmax_j scale x_i.y_j) + CE(target_i, softmax_j scale y_i.x_j)]
    (Radford et al. 2021, arXiv:2103.00020, figure 3; they start at scale 1/0.07 and clamp it at 100).

    Dense form: a device holds its [b, B] logits of both directions. The reduction is in f32, whatever the
    features are, and subtracts the maximum, so that it is finite at any scale.

    Args:
      image: unit-norm features of the images, bf16 or f32.
      text: unit-norm features of the texts, row by row the partners of the images.
      scale: multiplies the similarities; exp(t'), already exponentiated. May be traced.
      ids: the target of a row is uniform over the pairs with its id; without it, its own partner.
      mask: rows that count; the others may hold anything. The mean is over the rows that count.
      label_smoothing: this share of the target is spread evenly over all rows that count, in [0, 1).
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the batch is split over; arguments are then
        the local block, and the result is the same on all devices. Both `grad(shard_map(loss))` and
        `shard_map(grad(loss))` give the gradient of the global mean.
      group_size: consecutive devices, in flattened axis order, that gather each other's texts. Checked; the dense
        form always gathers over the whole axis.

    Raises:
      ValueError: at trace time, for shapes, dtypes, an axis or a group size that cannot be, or `check_vma=False`.
    """
    pairs = check_pairs(image, text, ids, mask, axis_name, group_size)
    scale = check_scalar("scale", scale)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}.")
    count = count_pairs(pairs)
    total = jnp.zeros((), jnp.float32)
    for rows, columns in ((pairs.image, pairs.text), (pairs.text, pairs.image)):
        logits = scale * similarities(rows, all_rows(columns, pairs))
        total += _cross_entropy(logits, pairs, count, label_smoothing)
    return (jax.lax.psum(total, pairs.axes) if pairs.axes else total) / (2 * count)


def _cross_entropy(logits: jax.Array, pairs: Pairs, count: jax.Array, label_smoothing: float) -> jax.Array:
    """Sum over the local rows that count of log-sum-exp less the mean logit of the target."""
    counts = jnp.ones((1, 1), bool) if pairs.mask is None else all_rows(pairs.mask, pairs)[None, :]
    target = positives(pairs) & counts
    target_logit = jnp.sum(logits, axis=1, where=target) / jnp.maximum(target.sum(axis=1), 1)
    mean_logit = jnp.sum(logits, axis=1, where=counts) / count
    # A finite stand-in for minus infinity: a row whose columns are all masked must not make a NaN gradient.
    lse = jax.nn.logsumexp(jnp.where(counts, logits, -1e30), axis=1)
    losses = lse - (1 - label_smoothing) * target_logit - label_smoothing * mean_logit
    return jnp.sum(losses, where=True if pairs.mask is None else pairs.mask)
