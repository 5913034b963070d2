"""Cross-entropy of a linear classifier over a vocabulary, without its logits ever being in memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from .inputs import check_axes, vary, varying, wide
from .labels import cast_tile, product, where_counts, zeros
from .tiles import LSE_OR_SUM, SUM, Fold, over_tiles

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def cross_entropy(
    hidden: Float[Array, "tokens dim"],
    embedding: Float[Array, "vocab dim"],
    labels: Int[Array, "tokens"],
    *,
    weights: Float[Array, "tokens"] | None = None,
    ignore: int = -1,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    vocab_axis_name: str | tuple[str, ...] | None = None,
    block: tuple[int, int] = (1024, 4096),
    return_losses: bool = False,
) -> Float[Array, ""] | tuple[Float[Array, ""], Float[Array, "tokens"]]:
    """Mean over the global batch of -log softmax(hidden embedding^T)[label], over tokens that are not ignored.

    The logits [tokens, vocab] are most of a language model's memory. Here they are made tile by tile, and made again
    for the gradient; between the two only the log-sum-exp of each token is kept (as in Cut Your Losses, Wijmans et
    al. 2024, arXiv:2411.09009, without its gradient filter). Products are in the type of `hidden`, sums in f32.

    Args:
      hidden: what the classifier sees of each token, bf16 or f32.
      embedding: one row for each entry of the vocabulary; cast tile by tile to the type of `hidden`.
      labels: entries of the vocabulary, or `ignore`.
      weights: what tokens count in the mean, at least 0, such as less for those of images; None for the same.
      ignore: tokens with this label do not count; their `hidden` and weight may hold anything.
      z_loss: weight of the mean of log-sum-exp^2, which keeps logits from drifting (PaLM, arXiv:2204.02311, section 5).
      soft_cap: logits become soft_cap tanh(logits / soft_cap) (Gemma 2, arXiv:2408.00118, section 2).
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the tokens are split over. The result is the
        same on all devices; `grad(shard_map(loss))` and `shard_map(grad(loss))` give the gradient of the global mean.
      vocab_axis_name: the axes that the embedding's rows are split over, in order; the tokens are the same along them.
      block: most tokens and vocabulary entries of a tile.
      return_losses: also return each token's -log softmax(...)[label], f32, without a weight; 0 where it is ignored.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or `check_vma=False`.
    """
    hidden, embedding, labels = jnp.asarray(hidden), jnp.asarray(embedding), jnp.asarray(labels)
    weights = jnp.ones_like(labels, jnp.float32) if weights is None else jnp.asarray(weights)
    _check(hidden, embedding, labels, weights, soft_cap, block)
    axes = check_axes("axis_name", axis_name, hidden=hidden, labels=labels)
    vocab_axes = check_axes("vocab_axis_name", vocab_axis_name, embedding=embedding)
    if set(axes) & set(vocab_axes):
        raise ValueError(f"no axis can split tokens and vocabulary; got {axis_name!r} and {vocab_axis_name!r}.")
    hidden, labels, embedding = vary(hidden, axes), vary(labels, axes), vary(embedding, vocab_axes)
    counts = labels != ignore
    first = jax.lax.axis_index(vocab_axes) * embedding.shape[0] if vocab_axes else 0
    everywhere = varying(hidden) | varying(embedding) | varying(labels)
    arguments = (vary(x, everywhere) for x in (hidden, embedding, labels - first, counts))
    lse, label_logit = _log_sum_exp_and_label(Static(soft_cap, tuple(block)), *arguments)
    if vocab_axes:
        top = jax.lax.pmax(jax.lax.stop_gradient(lse), vocab_axes)
        lse = top + jnp.log(jax.lax.psum(jnp.exp(lse - top), vocab_axes))
        label_logit = jax.lax.psum(label_logit, vocab_axes)
    each, weights = jnp.where(counts, lse - label_logit, 0), jnp.where(counts, vary(weights, axes), 0)
    total = jnp.sum(weights * (each + z_loss * jnp.where(counts, lse, 0) ** 2))
    count = weights.sum(dtype=jnp.float32)
    if axes:
        total, count = jax.lax.psum((total, count), axes)
    loss = total / jnp.where(count > 0, count, 1)
    return (loss, each) if return_losses else loss


class Static(NamedTuple):
    """What the program depends on and no array holds."""

    soft_cap: float | None
    block: tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sum_exp_and_label(static: Static, hidden, embedding, labels, counts) -> tuple[jax.Array, jax.Array]:
    """Of the logits of each token: log-sum-exp, and the one of the label (0 where no row has it); both [tokens]."""

    def tile(rows, columns, pairs):
        _, logits, is_label = _tile_logits(static, rows, columns)
        logits, is_label = where_counts(pairs, logits, -jnp.inf), where_counts(pairs, is_label, False)
        return {"lse": jax.nn.logsumexp(logits, axis=1), "label": jnp.sum(logits, axis=1, where=is_label)}, {}

    start = LSE_OR_SUM.empty({name: zeros(hidden, hidden.shape[0]) for name in ("lse", "label")})
    sides = _sides(hidden, embedding, labels, counts)
    found, _ = over_tiles(tile, LSE_OR_SUM, *sides, start, {}, static.block)
    return found["lse"], found["label"]


def _forward(static, *arguments):
    lse, label_logit = _log_sum_exp_and_label(static, *arguments)
    return (lse, label_logit), (*arguments, lse)


def _backward(static, kept, cotangents):
    *arguments, lse = kept
    hidden, embedding, *_ = arguments
    d_lse, d_label = cotangents

    def tile(rows, columns, pairs):
        x, logits, is_label = _tile_logits(static, rows, columns)
        g = rows["d_lse"][:, None] * jnp.exp(logits - rows["lse"][:, None])
        g = jnp.where(is_label, g + rows["d_label"][:, None], g)
        if static.soft_cap is not None:
            g *= 1 - (logits / static.soft_cap) ** 2
        g = where_counts(pairs, g).astype(x.dtype)
        return product("nv,vd->nd", g, cast_tile(columns["x"], x.dtype)), product("nv,nd->vd", g, x)

    rows, columns = _sides(*arguments)
    rows |= {"lse": lse, "d_lse": d_lse, "d_label": d_label}
    start = zeros(hidden, *hidden.shape), jnp.zeros_like(embedding)
    d_hidden, d_embedding = over_tiles(tile, WIDE_SUM, rows, columns, *start, static.block)
    return d_hidden.astype(hidden.dtype), d_embedding, None, None


_log_sum_exp_and_label.defvjp(_forward, _backward)


def _sides(hidden, embedding, labels, counts) -> tuple[dict, dict]:
    """Tokens as rows, entries of the vocabulary as columns. All rows are visited: those that do not count as zeros."""
    rows = {"x": hidden, "label": labels, "real": counts, "counts": None}
    return rows, {"x": embedding, "id": jnp.arange(embedding.shape[0]), "counts": None}


def _tile_logits(static: Static, rows, columns) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden, logits, and which of them are the label's."""
    x = jnp.where(rows["real"][:, None], rows["x"], 0)
    logits = product("nd,vd->nv", x, cast_tile(columns["x"], x.dtype))
    if static.soft_cap is not None:
        logits = static.soft_cap * jnp.tanh(logits / static.soft_cap)
    return x, logits, rows["label"][:, None] == columns["id"][None, :]


# A tile of the embedding's gradient is summed over the tokens in f32, and kept in the embedding's own type.
WIDE_SUM = Fold(SUM.merge, lambda x: vary(jnp.zeros(x.shape, wide(x.dtype)), varying(x)))


def _check(hidden, embedding, labels, weights, soft_cap, block) -> None:
    if hidden.ndim != 2 or embedding.ndim != 2 or hidden.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"hidden must be [tokens, dim] and embedding [vocab, dim]; got {hidden.shape} and {embedding.shape}."
        )
    for name, x in (("hidden", hidden), ("embedding", embedding)):
        if not x.size:
            raise ValueError(f"{name} must not be empty; got {x.shape}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a floating-point type; got {x.dtype}.")
    if labels.shape != hidden.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.signedinteger):
        raise ValueError(
            f"labels must be signed integers of shape {hidden.shape[:1]}; got {labels.dtype} of shape {labels.shape}."
        )
    if weights.shape != labels.shape or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(
            f"weights must be floating-point numbers of shape {labels.shape}; got {weights.dtype} of shape "
            f"{weights.shape}."
        )
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be positive, or None; got {soft_cap}.")
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block must be two positive sizes, of tokens and of vocabulary entries; got {block}.")
