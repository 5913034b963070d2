"""Writing token by token: greedy, sampled, or the best of several beams, as one compiled loop.

A model that writes is a function `extend(tokens [n], cache) -> (logits [n, vocab], cache)`. Every leaf of its cache has
the batch as its leading axis, so that beams can change places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vlm_jax.errors import UserError

Cache = Any
Extend = Callable[[Int[Array, " n"], Cache], tuple[Float[Array, "n vocab"], Cache]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when a sequence ends.

    Attributes:
      max_tokens: of a sequence, with the one that stops it.
      stop: tokens after which a sequence ends; what follows is `pad`.
      pad: the id that fills sequences up.
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: only so many of the likeliest tokens are drawn from; 0 for all.
      top_p: only the likeliest tokens are drawn from that together have this probability (Holtzman et al. 2020,
        arXiv:1904.09751, section 3.1), after `temperature` and `top_k`.
      beams: sequences that are kept side by side; more than 1 needs temperature 0.
      length_penalty: of beams: sums of log-probabilities are divided by `tokens ** length_penalty`.
    """

    max_tokens: int = 64
    stop: tuple[int, ...] = ()
    pad: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for values that do not fit together."""
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 1.")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}: wanted are temperature >= 0, "
                "top_k >= 0 and 0 < top_p <= 1."
            )
        if self.beams < 1:
            raise UserError(f"beams={self.beams} must be at least 1.")
        if self.beams > 1 and self.temperature:
            raise UserError(f"beams={self.beams} search for the likeliest text: set temperature=0, or beams=1.")


def generate(
    extend: Extend,
    logits: Float[Array, "n vocab"],
    cache: Cache,
    sampling: Sampling,
    key: Key[Array, ""] | Key[Array, " n"] | None = None,
) -> Int[Array, "n max_tokens"]:
    """The tokens after a prompt, by whose last token `logits` were given and whose `cache` is.

    The loop ends when every sequence has. Each row draws from a stream of its own, by its number, so that no row
    depends on how many others there are. To be called inside `jax.jit`.

    Args:
      key: of what is drawn, or one for each row; not needed at temperature 0.

    Raises:
      UserError: a temperature without a key.
    """
    if sampling.beams > 1:
        return _beam_search(extend, logits, cache, sampling)
    if sampling.temperature and key is None:
        raise UserError(f"temperature={sampling.temperature} draws tokens: give a key.")
    key = jax.random.key(0) if key is None else key
    n = logits.shape[0]

    class State(NamedTuple):
        step: Int[Array, ""]
        logits: Float[Array, "n vocab"]
        cache: Cache
        tokens: Int[Array, "n max_tokens"]
        ended: Bool[Array, " n"]

    def one(state: State) -> State:
        if key.ndim:
            keys = jax.vmap(jax.random.fold_in, (0, None))(key, state.step)
        else:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, state.step), jnp.arange(n))
        token = jnp.where(state.ended, sampling.pad, jax.vmap(_choose, (0, None, 0))(state.logits, sampling, keys))
        tokens = state.tokens.at[:, state.step].set(token)
        ended = state.ended | _stops(token, sampling)
        logits, cache = extend(token, state.cache)
        return State(state.step + 1, logits, cache, tokens, ended)

    def goes_on(state: State) -> Bool[Array, ""]:
        return (state.step < sampling.max_tokens) & ~state.ended.all()

    tokens = jnp.full((n, sampling.max_tokens), sampling.pad, jnp.int32)
    start = State(jnp.int32(0), logits.astype(jnp.float32), cache, tokens, jnp.zeros(n, bool))
    return jax.lax.while_loop(goes_on, one, start).tokens


def restricted(extend: Extend, first: int, count: int) -> Extend:
    """`extend` for tokens `first` to `first + count - 1` alone, which are numbered from 0."""

    def one(tokens: Int[Array, " n"], cache: Cache) -> tuple[Float[Array, "n count"], Cache]:
        logits, cache = extend(tokens + first, cache)
        return logits[:, first : first + count], cache

    return one


def guided(extend: Extend, scale: float) -> Extend:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598), of logits as in CM3Leon (arXiv:2309.02591).

    Each row is two streams, that with its condition and one without; leaves of the cache are [n, 2, ...].
    """

    def one(tokens: Int[Array, " n"], cache: Cache) -> tuple[Float[Array, "n vocab"], Cache]:
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), cache)
        logits, flat = extend(jnp.repeat(tokens, 2), flat)
        return guide(logits, scale), pairs(flat)

    return one


def guide(logits: Float[Array, "two_n vocab"], scale: float) -> Float[Array, "n vocab"]:
    """`without + scale * (with - without)` of rows that alternate: one with its condition, the same one without."""
    given, free = jnp.unstack(pairs(logits.astype(jnp.float32)), axis=1)
    return free + scale * (given - free)


def pairs(tree: Any) -> Any:
    """Leaves [n, 2, ...] of leaves [2 n, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)


def _stops(token: Int[Array, "..."], sampling: Sampling) -> Bool[Array, "..."]:
    return jnp.isin(token, jnp.array(sampling.stop, jnp.int32)) if sampling.stop else jnp.zeros(token.shape, bool)


def _choose(logits: Float[Array, " vocab"], sampling: Sampling, key: Key[Array, ""]) -> Int[Array, ""]:
    if not sampling.temperature:
        return jnp.argmax(logits).astype(jnp.int32)
    return jax.random.categorical(key, allowed(logits, sampling)).astype(jnp.int32)


def allowed(logits: Float[Array, " vocab"], sampling: Sampling) -> Float[Array, " vocab"]:
    """The logits that are drawn from: by temperature, and -inf for tokens that top_k or top_p leave out."""
    logits = logits.astype(jnp.float32) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][-1]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        order = jnp.argsort(logits, descending=True)
        probability = jax.nn.softmax(logits[order])
        before = jnp.cumsum(probability) - probability  # the first token is always left
        out = jnp.zeros(logits.shape, bool).at[order].set(before >= sampling.top_p)
        logits = jnp.where(out, -jnp.inf, logits)
    return logits


class _Beams(NamedTuple):
    """Running beams, and the best sequences that have ended, of each row."""

    step: Int[Array, ""]
    tokens: Int[Array, "n beams max_tokens"]
    score: Float[Array, "n beams"]
    log_p: Float[Array, "n beams vocab"]
    cache: Cache
    open: Bool[Array, " n"]
    done: Int[Array, "n beams max_tokens"]
    done_score: Float[Array, "n beams"]


def _beam_search(extend: Extend, logits: Array, cache: Cache, sampling: Sampling) -> Int[Array, "n max_tokens"]:
    """Of each row the sequence with the largest sum of log-probabilities over length^penalty.

    At each step the best `2 beams` continuations are looked at: those that end among the first `beams` of them are kept
    with the best that ended so far, and the best `beams` that go on are extended. A row is done when no running beam
    can still overtake the worst of `beams` ended ones by its score now (as transformers' `early_stopping=False`).
    """
    (n, vocab), beams, most = logits.shape, sampling.beams, sampling.max_tokens
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    score = jnp.full((n, beams), -jnp.inf).at[:, 0].set(0.0)  # all beams begin alike: but one is nothing
    state = _Beams(
        step=jnp.int32(0),
        tokens=jnp.full((n, beams, most), sampling.pad, jnp.int32),
        score=score,
        log_p=jnp.broadcast_to(log_p[:, None], (n, beams, vocab)),
        cache=jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache),
        open=jnp.ones(n, bool),
        done=jnp.full((n, beams, most), sampling.pad, jnp.int32),
        done_score=jnp.full((n, beams), -jnp.inf),
    )
    row = jnp.arange(n)[:, None]

    def one(state: _Beams) -> _Beams:
        total = (state.score[..., None] + state.log_p).reshape(n, -1)
        score, index = jax.lax.top_k(total, min(2 * beams, total.shape[1]))
        parent, token = index // vocab, (index % vocab).astype(jnp.int32)
        tokens = state.tokens[row, parent].at[:, :, state.step].set(token)
        last = state.step + 1 == most
        ends = _stops(token, sampling)
        penalty = (state.step + 1.0) ** sampling.length_penalty
        in_front = jnp.arange(score.shape[1]) < beams
        ended = jnp.where((ends | last) & in_front & state.open[:, None], score / penalty, -jnp.inf)
        done_score, best = jax.lax.top_k(jnp.concatenate([state.done_score, ended], axis=1), beams)
        done = jnp.concatenate([state.done, tokens], axis=1)[row, best]
        score, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, score), beams)
        tokens, parent, token = tokens[row, kept], parent[row, kept], token[row, kept]
        places = (row * beams + parent).reshape(-1)
        logits, cache = extend(token.reshape(-1), jax.tree.map(lambda x: x[places], state.cache))
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(n, beams, vocab)
        can_win = score.max(axis=1) / penalty > done_score.min(axis=1)
        return _Beams(state.step + 1, tokens, score, log_p, cache, state.open & can_win, done, done_score)

    end = jax.lax.while_loop(lambda state: (state.step < most) & state.open.any(), one, state)
    return end.done[:, 0]
