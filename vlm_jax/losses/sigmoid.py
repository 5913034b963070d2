"""The pairwise sigmoid loss of SigLIP, on one device or over the axes of a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .blocks import all_rows, count_pairs, positives, similarities
from .inputs import check_pairs, check_scalar

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def sigmoid_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    *,
    ids: Int[Array, "batch"] | None = None,
    mask: Bool[Array, "batch"] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    group_size: int | None = None,
) -> Float[Array, ""]:
    """Mean over the global batch of the sigmoid loss of every image with every text.

    Every pair is a yes-or-no question of its own, so that no softmax ties the batch together:
    L = 1/B sum_ij softplus(-z_ij (scale x_i.y_j + bias)), z = +1 for positives and -1 for the rest
    (Zhai et al. 2023, arXiv:2303.15343, equation 1 and algorithm 1; they start at scale 10, bias -10).

    Dense form: a device holds its [b, B] logits. The reduction is in f32, whatever the features are.

    Args:
      image: unit-norm features of the images, bf16 or f32.
      text: unit-norm features of the texts, row by row the partners of the images.
      scale: multiplies the similarities; exp(t'), already exponentiated. May be traced.
      bias: is added to the logits. May be traced.
      ids: pairs with equal ids are positives of each other; without it only the diagonal is.
      mask: rows that count; the others may hold anything. The mean is over the rows that count.
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the batch is split over; arguments are then
        the local block, and the result is the same on all devices. Both `grad(shard_map(loss))` and
        `shard_map(grad(loss))` give the gradient of the global mean.
      group_size: consecutive devices, in flattened axis order, that gather each other's texts. Checked; the dense
        form always gathers over the whole axis.

    Raises:
      ValueError: at trace time, for shapes, dtypes, an axis or a group size that cannot be, or `check_vma=False`.
    """
    pairs = check_pairs(image, text, ids, mask, axis_name, group_size)
    scale, bias = check_scalar("scale", scale), check_scalar("bias", bias)
    logits = scale * similarities(pairs.image, all_rows(pairs.text, pairs)) + bias
    losses = jax.nn.softplus(jnp.where(positives(pairs), -logits, logits))
    if pairs.mask is not None:
        losses = jnp.where(pairs.mask[:, None] & all_rows(pairs.mask, pairs)[None, :], losses, 0)
    total = losses.sum()
    return (jax.lax.psum(total, pairs.axes) if pairs.axes else total) / count_pairs(pairs)
