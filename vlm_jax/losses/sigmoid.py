"""The pairwise sigmoid loss of SigLIP, in memory that does not grow with the global batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import Pairs, check_pairs, count_pairs
from .labels import positives, product, rows_and_columns, travelling_texts, where_counts, zeros
from .ring import Ring
from .tiles import SUM, over_tiles

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

    A device holds one tile of logits and the texts of its group, forward and backward, whatever the global batch:
    texts go round the devices with the f32 sum of their gradients beside them, and gradients are made in the same
    pass as the loss. The reduction is in f32, whatever the features are.

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
      group_size: consecutive devices, in flattened axis order, that gather each other's texts; the ring goes from
        group to group. More is faster where the local batch is small, and takes more memory. None: as few as make
        2048 texts.

    Raises:
      ValueError: at trace time, for shapes, dtypes, an axis or a group size that cannot be, or `check_vma=False`.
    """
    pairs, (scale, bias), ring = check_pairs(image, text, ids, mask, axis_name, group_size, scale=scale, bias=bias)
    return ring.total(_local_sum(ring, pairs, scale, bias)) / count_pairs(pairs, ring)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local_sum(ring: Ring, pairs: Pairs, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Sum of the losses of this device's images with all texts."""
    return _one_pass(ring, pairs, scale, bias, gradients=False)["loss"].sum()


def _local_sum_forward(ring, pairs, scale, bias):
    sums = _one_pass(ring, pairs, scale, bias, gradients=True)
    d_scale = jnp.sum(pairs.image * sums["image"])
    d_image, d_text = (scale * sums[name] for name in ("image", "text"))
    dtype = pairs.image.dtype
    return sums["loss"].sum(), (d_image.astype(dtype), d_text.astype(dtype), d_scale, sums["bias"].sum())


def _local_sum_backward(ring, gradients, cotangent):
    # The sum of `_local_sum` over the devices is all that is ever used, so that the cotangent of the devices whose
    # images met this device's texts is this device's own.
    d_image, d_text, d_scale, d_bias = ((cotangent * x).astype(x.dtype) for x in gradients)
    return Pairs(d_image, d_text, None, None), d_scale, d_bias


_local_sum.defvjp(_local_sum_forward, _local_sum_backward)


def _one_pass(ring: Ring, pairs: Pairs, scale, bias, *, gradients: bool) -> dict[str, jax.Array]:
    """Sums over all pairs of this device's rows: of losses and, unscaled, of gradients.

    The gradient by a logit is G = -z sigmoid(-z logit), that by the features scale G y and scale G^T x, and that
    by scale, sum_ij G_ij x_i.y_j, is what the images and their sums G y already hold.
    """

    def tile(rows, columns, counts):
        logits = scale * product("id,jd->ij", rows["x"], columns["x"]) + bias
        positive = positives(rows, columns)
        against = jnp.where(positive, -logits, logits)  # -z logit
        small = jnp.exp(-jnp.abs(against))
        losses = where_counts(counts, jnp.maximum(against, 0) + jnp.log1p(small))
        if not gradients:
            return {"loss": losses.sum(axis=1)}, {}
        g = jnp.where(against >= 0, 1, small) / (1 + small)
        g = where_counts(counts, jnp.where(positive, -g, g))
        to_images, to_texts = product("ij,jd->id", g, columns["x"]), product("ij,id->jd", g, rows["x"])
        return {"loss": losses.sum(axis=1), "bias": g.sum(axis=1), "image": to_images}, {"text": to_texts}

    def visit(origin, travels, row_sums, column_sums):
        rows, columns = rows_and_columns(pairs, ring, origin, travels)
        return over_tiles(tile, SUM, rows, columns, row_sums, column_sums)

    travels = travelling_texts(pairs, ring)
    batch, dim = pairs.image.shape
    row_sums, column_sums = {"loss": zeros(pairs.image, batch)}, {}
    if gradients:
        row_sums |= {"bias": zeros(pairs.image, batch), "image": zeros(pairs.image, batch, dim)}
        column_sums = {"text": zeros(pairs.image, *travels["x"].shape)}
    row_sums, column_sums = ring.go_round(visit, travels, row_sums, column_sums)
    return row_sums | {name: ring.scatter_sum(x) for name, x in column_sums.items()}
