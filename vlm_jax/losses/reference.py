"""Dense twins of the losses: the equations on the whole batch, in f32, with every logit in memory.

They are what the sharded losses are tested against. Nothing here is fast or small, on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

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
) -> Float[Array, ""]:
    """Pairwise sigmoid loss, Algorithm 1 of SigLIP (Zhai et al. 2023, arXiv:2303.15343).

    L = 1/B sum_ij softplus(-z_ij (scale x_i.y_j + bias)), with z = +1 for positives and -1 for the rest.
    """
    image, text, positive, valid = _pairs(image, text, ids, mask)
    logits = scale * jnp.einsum("id,jd->ij", image, text, precision="highest") + bias
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(losses, where=valid[:, None] & valid[None, :]) / jnp.maximum(valid.sum(), 1)


def infonce_loss(
    image: Float[Array, "batch dim"],
    text: Float[Array, "batch dim"],
    scale: Float[Array, ""],
    *,
    ids: Int[Array, "batch"] | None = None,
    mask: Bool[Array, "batch"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Symmetric softmax contrastive loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    L = 1/2B sum_i [CE(target_i, softmax_j scale x_i.y_j) + CE(target_i, softmax_j scale y_i.x_j)].
    """
    image, text, positive, valid = _pairs(image, text, ids, mask)
    logits = scale * jnp.einsum("id,jd->ij", image, text, precision="highest")
    count = jnp.maximum(valid.sum(), 1)
    target = positive & valid[None, :]
    target = target / jnp.maximum(target.sum(axis=1, keepdims=True), 1)
    target = (1 - label_smoothing) * target + label_smoothing * valid[None, :] / count

    def direction(logits):
        log_softmax = jax.nn.log_softmax(jnp.where(valid[None, :], logits, -1e30), axis=1)
        losses = -jnp.sum(target * jnp.where(valid[None, :], log_softmax, 0.0), axis=1)
        return jnp.sum(losses, where=valid) / count

    return (direction(logits) + direction(logits.T)) / 2


def cross_entropy(
    hidden: Float[Array, "tokens dim"],
    embedding: Float[Array, "vocab dim"],
    labels: Int[Array, "tokens"],
    *,
    weights: Float[Array, "tokens"] | None = None,
    ignore: int = -1,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> Float[Array, ""]:
    """Weighted mean of -log softmax(logits)[label] + z_loss logsumexp(logits)^2 over tokens that are not ignored."""
    counts = labels != ignore
    weights = jnp.where(counts, 1.0 if weights is None else weights, 0.0)
    hidden = jnp.where(counts[:, None], hidden.astype(jnp.float32), 0.0)
    logits = jnp.einsum("nd,vd->nv", hidden, embedding.astype(jnp.float32), precision="highest")
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    log_softmax = jax.nn.log_softmax(logits, axis=1)
    losses = -jnp.take_along_axis(log_softmax, jnp.where(counts, labels, 0)[:, None], axis=1)[:, 0]
    losses += z_loss * jax.nn.logsumexp(logits, axis=1) ** 2
    total = weights.sum()
    return jnp.sum(weights * losses, where=counts) / jnp.where(total > 0, total, 1)


def nearest_code(z: Float[Array, "tokens dim"], codebook: Float[Array, "codes dim"]) -> Int[Array, "tokens"]:
    """argmin_k |z - e_k|^2, the first of equally near ones."""
    return jnp.sum((z[:, None] - codebook[None]) ** 2, axis=-1).argmin(axis=1)


def gumbel_softmax(
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "codes dim"],
    bias: Float[Array, "codes"],
    codebook: Float[Array, "codes out"],
    temperature: Float[Array, ""],
    noise: Float[Array, "tokens codes"],
    *,
    hard: bool = False,
) -> tuple[Float[Array, "tokens out"], Int[Array, "tokens"], Float[Array, "tokens"]]:
    """Vectors, sampled codes, and KL(softmax(logits) || uniform) of each token, for the given noise."""
    hidden, head, codebook = (x.astype(jnp.float32) for x in (hidden, head, codebook))
    logits = jnp.einsum("nd,kd->nk", hidden, head, precision="highest") + bias
    weights, codes = jax.nn.softmax((logits + noise) / temperature), jnp.argmax(logits + noise, axis=1)
    if hard:
        weights += jax.lax.stop_gradient(jax.nn.one_hot(codes, head.shape[0]) - weights)
    log_q = jax.nn.log_softmax(logits)
    kl = jnp.sum(jnp.exp(log_q) * (log_q + jnp.log(head.shape[0])), axis=1)
    return jnp.einsum("nk,ko->no", weights, codebook, precision="highest"), codes, kl


def _pairs(image, text, ids, mask):
    """Features in f32 with masked rows zeroed, which pairs are positive [B, B], and which rows count [B]."""
    batch = image.shape[0]
    valid = jnp.ones(batch, bool) if mask is None else mask
    ids = jnp.arange(batch) if ids is None else ids
    image, text = (jnp.where(valid[:, None], x.astype(jnp.float32), 0.0) for x in (image, text))
    return image, text, ids[:, None] == ids[None, :], valid
