"""Codebooks of running means: formulas in numpy, and the same codebook on one device and on eight."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import codebook, nearest_code


def features(tokens: int = 64, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, dim)).astype(np.float32)


def distances(z, embedding) -> np.ndarray:
    return np.square(z[:, None].astype(np.float64) - np.asarray(embedding, np.float64)[None]).sum(-1)


def test_update_is_that_of_the_formulas(pairs):
    decay, eps = 0.8, 1e-3
    state = codebook.init(jax.random.key(0), 12, 4)
    count, total = np.ones(12), np.asarray(state["embedding"], np.float64)
    assert np.abs(total).max() <= 1 / 12
    update = jax.jit(functools.partial(codebook.update, decay=decay, eps=eps))
    for step in range(4):
        z = features(seed=step)
        codes = distances(z, state["embedding"]).argmin(axis=1)
        state = update(state, z, codes)
        chosen = np.eye(12)[codes]
        count, total = decay * count + (1 - decay) * chosen.sum(0), decay * total + (1 - decay) * chosen.T @ z
        smoothed = (count + eps) / (count.sum() + 12 * eps) * count.sum()
        want = {"embedding": total / smoothed[:, None], "count": count, "sum": total}
        pairs.assert_close([state[name] for name in want], list(want.values()))


def test_an_unused_code_stays_where_it_is(pairs):
    state = codebook.init(jax.random.key(0), 12, 4)
    after = jax.jit(functools.partial(codebook.update, eps=0.0))(state, features(), np.zeros(64, np.int32))
    pairs.assert_close(after["embedding"][1:], state["embedding"][1:])


def test_revival_moves_dead_codes_and_their_running_means(pairs):
    z, threshold = features(), 2.0
    state = codebook.init(jax.random.key(0), 12, 4) | {"count": jnp.arange(12.0)}
    state["sum"] = state["embedding"] * state["count"][:, None]
    after = jax.jit(functools.partial(codebook.revive, threshold=threshold))(state, z, jax.random.key(1))
    for name in state:
        np.testing.assert_array_equal(after[name][2:], state[name][2:])
    rows = distances(np.asarray(after["embedding"][:2]), z)
    assert (rows.min(axis=1) == 0).all() and len(set(rows.argmin(axis=1))) == 2
    np.testing.assert_array_equal(after["count"][:2], threshold)
    later = jax.jit(functools.partial(codebook.update, eps=0.0))(after, z, np.full(64, 5))
    pairs.assert_close(later["embedding"][:2], after["embedding"][:2])


def test_kmeans_is_that_of_lloyd(pairs):
    z, key = features(96), jax.random.key(3)
    kmeans = jax.jit(codebook.kmeans, static_argnums=2, static_argnames=("iterations", "tile"))
    start = kmeans(z, key, 8, iterations=0)
    means = np.asarray(start["embedding"], np.float64)
    assert (distances(means, z).min(axis=1) == 0).all()
    np.testing.assert_array_equal(start["count"], 1)
    for _ in range(5):
        codes = distances(z, means).argmin(axis=1)
        means = np.stack([z[codes == k].mean(axis=0) for k in range(8)])
    state = kmeans(z, key, 8, iterations=5, tile=(32, 3))
    pairs.assert_close(state["embedding"], means)
    np.testing.assert_array_equal(state["count"], np.bincount(codes, minlength=8))
    pairs.assert_close(state["sum"], np.eye(8)[codes].T @ z)


def test_a_cluster_without_rows_stays():
    """Of two different rows, three codes: one shares a row with another, and loses to it."""
    z = np.repeat(np.array([[0.0, 1.0], [5.0, 0.0]], np.float32), 8, axis=0)
    state = jax.jit(codebook.kmeans, static_argnums=2)(z, jax.random.key(0), 3)
    assert np.isfinite(state["embedding"]).all() and sorted(state["count"].tolist())[0] == 1
    np.testing.assert_allclose(state["sum"], state["embedding"] * state["count"][:, None])


@pytest.mark.parametrize(
    "sizes, axes",
    [({"data": 8}, "data"), pytest.param({"data": 2, "fsdp": 4}, ("fsdp", "data"), marks=pytest.mark.full)],
    ids=str,
)
def test_one_device_and_eight_learn_the_same_codebook(pairs, sizes, axes):
    """Through k-means and 20 updates with revival, of features whose nearest code is nearest by a margin."""

    def start(z, key, axis_name=None):
        return codebook.kmeans(z, key, 16, iterations=4, axis_name=axis_name)

    def step(z, key, state, axis_name=None):
        codes = nearest_code(z, state["embedding"])
        state = codebook.update(state, z, codes, decay=0.9, axis_name=axis_name)
        return codebook.revive(state, z, key, threshold=4.5, axis_name=axis_name)

    def split(f):
        mapped = functools.partial(jax.shard_map, mesh=pairs.make_mesh(**sizes), out_specs=P())
        one = lambda z, key: mapped(functools.partial(f, axis_name=axes), in_specs=(P(axes), P()))(z, key)
        more = lambda z, key, state: mapped(functools.partial(f, axis_name=axes), in_specs=(P(axes), P(), P()))(
            z, key, state
        )
        return jax.jit(one if f is start else more)

    key, z = jax.random.key(0), features(96)
    few, many = jax.jit(start)(z, key), split(start)(z, key)
    pairs.assert_close(many, few)
    step_one, step_many, revived = jax.jit(step), split(step), 0
    for i in range(20):
        z, key = features(96, seed=i), jax.random.key(i)
        nearest_two = np.sort(distances(z, few["embedding"]), axis=1)[:, :2]
        assert np.diff(nearest_two, axis=1).min() > 2e-5
        few, many = step_one(z, key, few), step_many(z, key, many)
        revived += int((few["count"] == 4.5).sum())
        pairs.assert_close(many, few)
    assert revived > 5


def test_usage():
    codes = np.array([[0, 0, 1], [3, 3, 3]])
    usage, count = jax.jit(codebook.usage), codebook.count_codes(codes, 4)
    np.testing.assert_array_equal(count, [2, 1, 0, 3])
    used, perplexity = usage(count)
    share = np.array([2, 1, 3]) / 6
    np.testing.assert_allclose([used, perplexity], [0.75, np.exp(-(share * np.log(share)).sum())], rtol=1e-6)
    np.testing.assert_allclose(usage(jnp.full(4, 3.0)), [1, 4], rtol=1e-6)


STATE = jax.eval_shape(lambda: codebook.init(jax.random.key(0), 5, 4))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda s: codebook.init(jax.random.key(0), 0, 4), "at least one code and one dim; got 0 and 4"),
        (lambda s: codebook.update(s, jnp.zeros((8, 3)), jnp.zeros(8, int)), r"same dim; got \(8, 3\) and \(5, 4\)"),
        (lambda s: codebook.update(s, jnp.zeros((8, 4)), jnp.zeros(7, int)), r"of shape \(8,\).*got \(7,\)"),
        (lambda s: codebook.update(s, jnp.zeros((8, 4)), jnp.zeros(8)), "codes must be integers; got float32"),
        (lambda s: codebook.update(s, jnp.zeros((8, 4)), jnp.zeros(8, int), decay=1.1), r"in \[0, 1\]; got 1.1"),
        (lambda s: codebook.kmeans(jnp.zeros((8, 4)), jax.random.key(0), 9), "8 rows makes 1 to 8 codes; got 9"),
        (lambda s: codebook.revive(s, jnp.zeros((8, 4)), jax.random.key(0), axis_name="data"), "axis_name must be"),
    ],
)
def test_bad_input_is_refused_at_trace_time(call, says):
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(call, STATE)


def test_codes_out_of_range_are_refused_where_they_are_known():
    state = codebook.init(jax.random.key(0), 5, 4)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 5\); got 5"):
        codebook.update(state, features(), np.full(64, 5))


def test_codes_out_of_range_count_for_none_where_they_are_not_known(pairs):
    state, z = codebook.init(jax.random.key(0), 5, 4), features()
    codes = np.arange(64) % 7 - 1  # -1 to 5
    known = (codes >= 0) & (codes < 5)
    update = jax.jit(codebook.update)
    pairs.assert_close(update(state, z, codes), update(state, z[known], codes[known]))
