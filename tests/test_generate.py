import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling, allowed, generate
from vlm_jax.models.decoder import LanguageModel

MODEL = LanguageModel(
    width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=48, vocab_size=20, length=24, dtype="float32", scan=False
)
TEXT = np.random.default_rng(0).integers(3, 20, (4, 6)).astype(np.int32)
COUNT = np.array([6, 2, 4, 1])
SAMPLERS = {
    "greedy": {},
    "temperature": {"temperature": 1.5},
    "top_k": {"temperature": 2.0, "top_k": 5},
    "top_p": {"temperature": 1.5, "top_p": 0.8},
    "beams": {"beams": 3},
}


def some(*always):
    """All samplers, of which the others count in full only."""
    return [name if name in always else pytest.param(name, marks=pytest.mark.full) for name in SAMPLERS]


@functools.cache
def params():
    with jax.ensure_compile_time_eval():  # the first to ask is being traced
        start = MODEL.init(jax.random.key(0))
        return jax.tree.map(lambda x: x + 0.4 * jax.random.normal(jax.random.key(x.size), x.shape), start)


@functools.partial(jax.jit, static_argnums=0)
def cached(sampling, text, count, key):
    hidden, cache = MODEL.extend(params(), text, MODEL.cache(len(text), 6 + sampling.max_tokens), count)

    def extend(tokens, cache):
        hidden, cache = MODEL.extend(params(), tokens[:, None], cache)
        return MODEL.logits(params(), hidden), cache

    return generate(extend, MODEL.logits(params(), hidden), cache, sampling, key)


@functools.partial(jax.jit, static_argnums=0)
def uncached(sampling, text, count, key):
    """The whole sequence again for each token."""

    def logits(text, count):
        hidden = MODEL.apply(params(), text)[0]
        return MODEL.logits(params(), jnp.take_along_axis(hidden, (count - 1)[:, None, None], axis=1)[:, 0])

    def extend(tokens, cache):
        text = cache["text"].at[jnp.arange(len(tokens)), cache["count"]].set(tokens)
        count = cache["count"] + 1
        return logits(text, count), {"text": text, "count": count}

    text = jnp.pad(text, ((0, 0), (0, sampling.max_tokens)))
    return generate(extend, logits(text, count), {"text": text, "count": count}, sampling, key)


@pytest.mark.parametrize("name", some("greedy", "top_p", "beams"))
def test_cached_equals_uncached(name):
    sampling = Sampling(max_tokens=10, stop=(3, 5), pad=0, **SAMPLERS[name])
    key = jax.random.key(7)
    out = np.asarray(cached(sampling, TEXT, COUNT, key))
    np.testing.assert_array_equal(out, uncached(sampling, TEXT, COUNT, key))
    for row in out:
        stops = np.flatnonzero(np.isin(row, [3, 5]))
        if len(stops):
            assert not row[stops[0] + 1 :].any()


@pytest.mark.parametrize("name", some("top_p", "beams"))
def test_a_row_does_not_depend_on_the_others(name):
    sampling = Sampling(max_tokens=8, stop=(3, 5, 9), **SAMPLERS[name])
    key = jax.random.key(1)
    together = np.asarray(cached(sampling, TEXT, COUNT, key))
    np.testing.assert_array_equal(together[:1], cached(sampling, TEXT[:1], COUNT[:1], key))
    np.testing.assert_array_equal(together[:2], cached(sampling, TEXT[:2], COUNT[:2], key))


@pytest.mark.full
def test_beams_find_what_is_likelier_than_greedy():
    greedy, beams = (Sampling(max_tokens=8, length_penalty=0.0, **SAMPLERS[name]) for name in ("greedy", "beams"))

    def log_p(tokens):
        total = 0
        for row in range(4):
            text = np.concatenate([TEXT[row, : COUNT[row]], tokens[row]])[None]
            logits = MODEL.logits(params(), MODEL.apply(params(), text)[0])[0]
            each = jax.nn.log_softmax(logits)[np.arange(len(text[0]) - 1), text[0, 1:]]
            total += each[COUNT[row] - 1 :].sum()
        return float(total)

    one, other = (np.asarray(cached(s, TEXT, COUNT, None)) for s in (greedy, beams))
    assert log_p(other) >= log_p(one) - 1e-4 and (one != other).any()


def test_one_beam_among_all_sequences_is_the_best():
    """With as many beams as there are sequences the search is exhaustive."""
    table = np.log(np.random.default_rng(2).dirichlet(np.ones(3), size=(3,)))
    start = np.log(np.array([[0.5, 0.3, 0.2]]))
    extend = lambda tokens, cache: (jnp.asarray(table)[tokens], cache)
    out = generate(extend, jnp.asarray(start), {"x": jnp.zeros(1)}, Sampling(max_tokens=3, beams=9, length_penalty=0.0))
    score = lambda s: start[0, s[0]] + table[s[0], s[1]] + table[s[1], s[2]]
    best = max(np.ndindex(3, 3, 3), key=score)
    assert tuple(np.asarray(out)[0].tolist()) == best


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=12), st.floats(0.05, 1), st.integers(0, 13))
def test_what_is_left_is_the_smallest_set_of_that_probability(values, top_p, top_k):
    logits = np.array(values, np.float32) + 1e-3 * np.arange(len(values), dtype=np.float32)
    left = np.isfinite(np.asarray(allowed(jnp.asarray(logits), Sampling(temperature=1.0, top_p=top_p, top_k=top_k))))
    assert left[logits.argmax()]
    if top_k:
        assert left.sum() <= max(top_k, 1)
    kept = logits if not 0 < top_k < len(logits) else np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
    probability = np.exp(kept - kept.max()) / np.exp(kept - kept.max()).sum()
    order = np.argsort(-kept, kind="stable")
    before = np.cumsum(probability[order]) - probability[order]
    wanted = np.zeros(len(logits), bool)
    wanted[order] = (before < top_p) & np.isfinite(kept[order])
    close = np.abs(before - top_p) < 1e-5  # rounding may decide these
    certain = ~np.isin(np.arange(len(logits)), order[close])
    assert (left == wanted)[certain].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"beams": 2, "temperature": 1.0}, "beams=2"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(UserError, match=message):
        Sampling(**change)


def test_drawing_needs_a_key():
    with pytest.raises(UserError, match="give a key"):
        generate(None, jnp.zeros((1, 3)), {}, Sampling(temperature=1.0))
