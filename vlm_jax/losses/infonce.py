"""The symmetric softmax contrastive loss of CLIP (InfoNCE), in memory that does not grow with the global batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import Pairs, check_pairs, count_pairs
from .labels import positives, product, rows_and_columns, travelling_texts, where_counts, zeros
from .ring import Ring
from .tiles import LSE_OR_SUM, SUM, over_tiles

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

    A device holds one tile of logits and the texts of its group, forward and backward, whatever the global batch.
    Texts go round the devices twice: with the log-sum-exp of their column beside them, and, for the gradient, with
    the f32 sum of theirs; between the two only the features and a log-sum-exp of each are kept. The maximum is
    subtracted from logits, and the reduction is in f32, whatever the features are.

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
      group_size: consecutive devices, in flattened axis order, that gather each other's texts; the ring goes from
        group to group. More is faster where the local batch is small, and takes more memory. None: as few as make
        2048 texts.

    Raises:
      ValueError: at trace time, for shapes, dtypes, an axis or a group size that cannot be, or `check_vma=False`.
    """
    pairs, (scale,), ring = check_pairs(image, text, ids, mask, axis_name, group_size, scale=scale)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}.")
    return ring.total(_local_sum(ring, label_smoothing, pairs, scale)) / (2 * count_pairs(pairs, ring))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _local_sum(ring: Ring, smoothing: float, pairs: Pairs, scale: jax.Array) -> jax.Array:
    """Sum of the cross-entropies of this device's images and of its texts."""
    return _local_sum_forward(ring, smoothing, pairs, scale)[0]


def _local_sum_forward(ring, smoothing, pairs, scale):
    found = _first_round(ring, pairs, scale)
    # Who is a positive of whom is mutual: over the batch, both directions have the same logits in their targets.
    target_logits = 2 * (1 - smoothing) * found["positive_logits"] / jnp.maximum(found["positives"], 1)
    if smoothing:
        all_texts = ring.total(pairs.text.sum(axis=0, dtype=scale.dtype))
        target_logits += 2 * smoothing / count_pairs(pairs, ring) * scale * (pairs.image @ all_texts)
    losses = found["image_lse"] + found["text_lse"] - target_logits
    if pairs.mask is not None:
        losses = jnp.where(pairs.mask, losses, 0)
    return losses.sum(), (pairs, scale, found["image_lse"], found["text_lse"], found["positives"])


def _local_sum_backward(ring, smoothing, kept, cotangent):
    pairs, scale, *vectors = kept
    sums = _second_round(ring, smoothing, pairs, scale, *vectors)
    # The sum of `_local_sum` over the devices is all that is ever used: every device has the same cotangent.
    d_image, d_text = ((cotangent * scale * sums[name]).astype(pairs.image.dtype) for name in ("image", "text"))
    return Pairs(d_image, d_text, None, None), cotangent * jnp.sum(pairs.image * sums["image"])


_local_sum.defvjp(_local_sum_forward, _local_sum_backward)


def _first_round(ring: Ring, pairs: Pairs, scale) -> dict[str, jax.Array]:
    """The log-sum-exp of each of this device's images and texts, and what the images' targets need, all [b]."""

    def tile(rows, columns, counts):
        logits = scale * product("id,jd->ij", rows["x"], columns["x"])
        target = where_counts(counts, positives(rows, columns), False)
        logits = where_counts(counts, logits, -jnp.inf)
        found = {
            "image_lse": jax.nn.logsumexp(logits, axis=1),
            "positives": target.sum(axis=1, dtype=logits.dtype),
            "positive_logits": jnp.sum(logits, axis=1, where=target),
        }
        return found, {"text_lse": jax.nn.logsumexp(logits, axis=0)}

    def visit(origin, travels, found, column_lse):
        rows, columns = rows_and_columns(pairs, ring, origin, travels)
        return over_tiles(tile, LSE_OR_SUM, rows, columns, found, column_lse)

    travels = travelling_texts(pairs, ring)
    start = lambda names, n: LSE_OR_SUM.empty({name: zeros(pairs.image, n) for name in names})
    found = start(("image_lse", "positives", "positive_logits"), pairs.image.shape[0])
    columns = start(("text_lse",), travels["x"].shape[0])
    found, columns = ring.go_round(visit, travels, found, columns)
    return found | {"text_lse": ring.scatter_log_sum_exp(columns["text_lse"])}


def _second_round(ring: Ring, smoothing: float, pairs: Pairs, scale, image_lse, text_lse, n_positives):
    """Sums G y of the images and G^T x of the texts, where G is the gradient by the logits."""
    of_positives = 2 * (1 - smoothing) / jnp.maximum(n_positives, 1)
    of_all = 2 * smoothing / count_pairs(pairs, ring) if smoothing else 0

    def tile(rows, columns, counts):
        logits = scale * product("id,jd->ij", rows["x"], columns["x"])
        g = jnp.exp(logits - rows["lse"][:, None]) + jnp.exp(logits - columns["lse"][None, :]) - of_all
        g = jnp.where(positives(rows, columns), g - rows["of_positives"][:, None], g)
        g = where_counts(counts, g)
        return {"image": product("ij,jd->id", g, columns["x"])}, {"text": product("ij,id->jd", g, rows["x"])}

    def visit(origin, travels, row_sums, column_sums):
        rows, columns = rows_and_columns(pairs, ring, origin, travels)
        rows |= {"lse": image_lse, "of_positives": of_positives}
        return over_tiles(tile, SUM, rows, columns | {"lse": travels["lse"]}, row_sums, column_sums)

    travels = travelling_texts(pairs, ring) | ring.gather({"lse": text_lse})
    row_sums = {"image": zeros(pairs.image, *pairs.image.shape)}
    column_sums = {"text": zeros(pairs.image, *travels["x"].shape)}
    row_sums, column_sums = ring.go_round(visit, travels, row_sums, column_sums)
    return row_sums | {"text": ring.scatter_sum(column_sums["text"])}
