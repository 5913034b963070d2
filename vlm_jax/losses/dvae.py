"""The discrete VAE's Gumbel-softmax over a codebook, whose weights and noise are never in memory but for one tile."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from .inputs import check_axes, vary, varying
from .labels import product, where_counts, zeros
from .latents import check_floating, check_tile, first_row, look_up
from .search import LOWEST, best_code, best_of, better, worst
from .tiles import SUM, Fold, over_tiles

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class Relaxed(NamedTuple):
    """What Gumbel-softmax makes of features."""

    vectors: Float[Array, "tokens out"]  # what the decoder sees
    codes: Int[Array, "tokens"]  # samples of softmax(logits)
    kl: Float[Array, "tokens"]  # KL(softmax(logits) || uniform) in nats, f32


def gumbel_softmax(
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "codes dim"],
    bias: Float[Array, "codes"],
    codebook: Float[Array, "codes out"],
    temperature: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    hard: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
    tile: tuple[int, int] = (1024, 4096),
) -> Relaxed:
    """Sums the codebook with weights softmax((logits + Gumbel noise) / temperature), logits = hidden head^T + bias.

    (Jang et al. 2016, arXiv:1611.01144; Maddison et al. 2016, arXiv:1611.00712; DALL-E's tokenizer, Ramesh et al. 2021,
    arXiv:2102.12092, section 2.1.) The three arrays [tokens, codes], logits, noise and weights, are made tile by tile
    with a running softmax, and again for the gradient. The noise is a hash of the key, the number of the token in the
    global batch and the code: sizes of tiles and numbers of devices do not change it.

    Args:
      hidden: features before the last (1 x 1) convolution of the encoder, bf16 or f32. Products are in its type.
      head: that convolution's kernel, one row for each code.
      bias: and its bias.
      codebook: what the decoder sees of each code.
      temperature: positive; near 0 the weights become those of one code. May be traced, and has a gradient.
      key: a new one each step.
      hard: `vectors` are those of `codes` alone, with the gradient of the weights (straight-through).
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the tokens are split over.
      tile: most tokens and codes of a tile.

    Returns:
      `vectors` in the type of `hidden`, and `kl` have gradients to the first five arguments; `kl` is of each token,
      without noise or temperature, and the mean or sum is the caller's.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or a temperature known not to be positive.
    """
    hidden, head, bias = _check_head(hidden, head, bias)
    codebook = check_floating("codebook", codebook, "codes out")
    if codebook.shape[0] != head.shape[0]:
        raise ValueError(f"head and codebook must have the same codes; got {head.shape} and {codebook.shape}.")
    if jnp.ndim(temperature):
        raise ValueError(f"temperature must be a scalar; got shape {jnp.shape(temperature)}.")
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}.")
    axes = check_axes("axis_name", axis_name, hidden=hidden)
    numbers = (first_row(hidden.shape[0], axes) + jnp.arange(hidden.shape[0])).astype(jnp.uint32)
    arguments = hidden, head, bias, codebook, jnp.asarray(temperature, jnp.float32), numbers, _seed(key)
    everywhere = frozenset().union(*(varying(x) for x in arguments))
    return _relax(Static(hard, check_tile(tile)), *(vary(x, everywhere) for x in arguments))


def most_likely_code(
    hidden: Float[Array, "tokens dim"],
    head: Float[Array, "codes dim"],
    bias: Float[Array, "codes"],
    *,
    tile: tuple[int, int] = (1024, 4096),
) -> Int[Array, "tokens"]:
    """argmax_k of the logits: an image's tokens, once the dVAE is trained. Arguments as in `gumbel_softmax`; int32."""
    most = check_tile(tile)
    return best_code(*jax.lax.stop_gradient(_check_head(hidden, head, bias)), most)


def gumbel_noise(
    key: PRNGKeyArray, tokens: Int[Array, "tokens"], codes: Int[Array, "codes"]
) -> Float[Array, "tokens codes"]:
    """The noise that `gumbel_softmax` adds to the logits of these tokens, by their number in the batch, and codes."""
    return _noise(_seed(key), jnp.asarray(tokens).astype(jnp.uint32), jnp.asarray(codes)).T


class Static(NamedTuple):
    """What the program depends on and no array holds."""

    hard: bool
    most: tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _relax(static: Static, hidden, head, bias, codebook, temperature, numbers, seed) -> Relaxed:
    return _forward(static, hidden, head, bias, codebook, temperature, numbers, seed)[0]


def _forward(static: Static, *arguments):
    hidden, head, _, codebook, temperature, *_ = arguments

    def tile(rows, columns, counts):
        logits, scores = _tile_logits(rows, columns, arguments, counts)
        best = best_of(scores, rows["id"])
        weights = jnp.exp((scores - best["score"]) / temperature)
        total, plain = weights.sum(axis=0), jax.nn.logsumexp(logits, axis=0)
        vectors = product("kn,ko->no", weights.astype(hidden.dtype), rows["codebook"]) / total[:, None]
        log_likely = logits - plain
        mean_log = jnp.sum(jnp.exp(log_likely) * log_likely, axis=0)
        return {}, {"best": best, "soft": (jnp.log(total), vectors), "plain": (plain, mean_log)}

    number = zeros(hidden, hidden.shape[0])
    lowest, vectors = number + LOWEST, zeros(hidden, hidden.shape[0], codebook.shape[1]).astype(hidden.dtype)
    start = {"best": {"score": lowest, "code": number.astype(jnp.int32)}}
    start |= {"soft": (number, vectors), "plain": (lowest, number)}
    fold = Fold(functools.partial(_merge, temperature), _empty)
    _, found = over_tiles(tile, fold, *_sides(arguments), {}, start, static.most)
    codes, vectors, mean_log = found["best"]["code"], found["soft"][1], found["plain"][1]
    kl = mean_log + jnp.log(jnp.float32(head.shape[0]))
    seen = look_up(codebook, codes).astype(hidden.dtype) if static.hard else vectors
    return Relaxed(seen, codes, kl), (arguments, found)


def _backward(static: Static, kept, cotangents):
    arguments, found = kept
    hidden, head, bias, codebook, temperature, *_ = arguments
    d_vectors, _, d_kl = cotangents
    # sum_k weight_k (d_vectors.e_k), the mean that a softmax's gradient subtracts, is known from the sum itself.
    mean = jnp.sum(d_vectors.astype(jnp.float32) * found["soft"][1].astype(jnp.float32), axis=1)

    def tile(rows, columns, counts):
        logits, scores = _tile_logits(rows, columns, arguments, counts)
        log_weights = (scores - columns["score"]) / temperature - columns["log_sum"]
        log_likely = logits - columns["plain"]
        weights, likely = (where_counts(counts, jnp.exp(x)) for x in (log_weights, log_likely))
        d_scaled = weights * (product("ko,no->kn", rows["codebook"], columns["d_vectors"]) - columns["mean"])
        d_logits = d_scaled / temperature + columns["d_kl"] * likely * (log_likely - columns["mean_log"])
        if static.hard:
            weights = where_counts(counts, (rows["id"][:, None] == columns["code"]).astype(weights.dtype))
        weights, d = weights.astype(hidden.dtype), d_logits.astype(hidden.dtype)
        to_codes = {
            "head": product("kn,nd->kd", d, columns["x"]),
            "bias": d_logits.sum(axis=1),
            "codebook": product("kn,no->ko", weights, columns["d_vectors"]),
            "temperature": -jnp.sum(d_scaled * log_weights, axis=1) / temperature,
        }
        return to_codes, product("kn,kd->nd", d, rows["x"])

    rows, columns = _sides(arguments)
    columns |= found["best"] | {"log_sum": found["soft"][0], "plain": found["plain"][0], "mean_log": found["plain"][1]}
    columns |= {"mean": mean, "d_vectors": d_vectors, "d_kl": d_kl}
    start = {"head": zeros(hidden, *head.shape), "bias": zeros(hidden, bias.size)}
    start |= {"codebook": zeros(hidden, *codebook.shape), "temperature": zeros(hidden, bias.size)}
    d, d_hidden = over_tiles(tile, WIDE_SUM, rows, columns, start, jnp.zeros_like(hidden), static.most)
    d_head, d_bias, d_codebook = (d[n].astype(x.dtype) for n, x in zip(("head", "bias", "codebook"), arguments[1:4]))
    return d_hidden, d_head, d_bias, d_codebook, d["temperature"].sum(), None, None


_relax.defvjp(_forward, _backward)


def _sides(arguments) -> tuple[dict, dict]:
    """Codes as rows and tokens as columns: all codes pass by one tile of tokens, whose sums are all that is kept."""
    hidden, head, bias, codebook, _, numbers, _ = arguments
    rows = {"x": head.astype(hidden.dtype), "bias": bias, "codebook": codebook.astype(hidden.dtype)}
    rows |= {"id": jnp.arange(bias.size), "counts": None}
    return rows, {"x": hidden, "number": numbers, "counts": None}


def _tile_logits(rows, columns, arguments, counts) -> tuple[jax.Array, jax.Array]:
    """Logits [codes, tokens], and those with noise."""
    logits = product("kd,nd->kn", rows["x"], columns["x"]) + rows["bias"][:, None]
    scores = logits + _noise(arguments[-1], columns["number"], rows["id"])
    return where_counts(counts, logits, LOWEST), where_counts(counts, scores, LOWEST)


def _seed(key: PRNGKeyArray) -> jax.Array:
    """Two words, whatever the implementation of the key."""
    return jax.random.bits(key, (2,), jnp.uint32)


def _noise(seed: jax.Array, tokens: jax.Array, codes: jax.Array) -> jax.Array:
    """Gumbel noise [codes, tokens], f32, by a counter-based generator (Threefry, Salmon et al. 2011)."""
    counters = jnp.broadcast_arrays(tokens[None, :], codes.astype(jnp.uint32)[:, None])
    bits, _ = threefry2x32_p.bind(seed[0], seed[1], *counters)
    # The largest noise, which decides, comes from the smallest numbers: the least of 2^32, not of 2^23, has its digits.
    uniform = jnp.minimum((vary(bits, varying(tokens)).astype(jnp.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-uniform))


def _merge(temperature: jax.Array, a: dict, b: dict) -> dict:
    """Of two tiles of the same tokens. `soft`: log-sum-exp of the scores, over temperature and counted from the best
    one, and the vectors under their weights. `plain`: log-sum-exp of the logits, and the mean log of their weights."""
    if not a:
        return a
    best = better(a["best"], b["best"])
    log_sums = [(x["best"]["score"] - best["score"]) / temperature + x["soft"][0] for x in (a, b)]
    log_sum, of_a, of_b = _shares(*log_sums)
    vectors = jnp.exp(of_a)[:, None] * a["soft"][1] + jnp.exp(of_b)[:, None] * b["soft"][1]
    plain, of_a, of_b = _shares(a["plain"][0], b["plain"][0])
    mean_log = jnp.exp(of_a) * (a["plain"][1] + of_a) + jnp.exp(of_b) * (b["plain"][1] + of_b)
    return {"best": best, "soft": (log_sum, vectors), "plain": (plain, mean_log)}


def _shares(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of two log-sum-exps, that of both, and the logarithms of what each has of it."""
    both = jnp.logaddexp(a, b)
    return both, a - both, b - both


def _empty(like: dict) -> dict:
    if not like:
        return like
    nothing = jax.tree.map(_wide_zeros, like)
    lowest = jnp.full_like(like["plain"][0], LOWEST)
    return {"best": worst(like["best"]), "soft": nothing["soft"], "plain": (lowest, nothing["plain"][1])}


def _wide_zeros(x: jax.Array) -> jax.Array:
    return vary(jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), varying(x))


# Sums over a tile are f32, and kept in the type of what they are sums for.
WIDE_SUM = Fold(SUM.merge, lambda tree: jax.tree.map(_wide_zeros, tree))


def _check_head(hidden, head, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden, head = check_floating("hidden", hidden, "tokens dim"), check_floating("head", head, "codes dim")
    bias = check_floating("bias", bias, "codes")
    if hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden and head must have the same dim; got {hidden.shape} and {head.shape}.")
    if bias.shape != head.shape[:1]:
        raise ValueError(f"bias must be of shape {head.shape[:1]}, one for each code; got {bias.shape}.")
    return hidden, head, bias
