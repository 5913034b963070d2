from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.apportion import WINDOW, Apportionment

weight_lists = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=1, max_size=6).filter(any)


def make(weights, **options) -> Apportionment:
    return Apportionment(tuple("abcdefgh"[: len(weights)]), tuple(weights), **options)


@settings(max_examples=30, deadline=None)
@given(weights=weight_lists, seed=st.integers(0, 2**63 - 1))
def test_a_window_holds_exactly_the_shares(weights, seed):
    held = make(weights, seed=seed)
    assert held.shares.sum() == WINDOW
    assert np.abs(held.shares - WINDOW * np.array(weights) / sum(weights)).max() < 1
    for window in (0, 7):
        sources, _ = held(window * WINDOW + np.arange(WINDOW))
        assert np.bincount(sources, minlength=len(weights)).tolist() == held.shares.tolist()


@settings(max_examples=30, deadline=None)
@given(weights=weight_lists, seed=st.integers(0, 9))
def test_proportions_hold_from_the_first_row_on(weights, seed):
    held = make(weights, seed=seed)
    sources, _ = held(np.arange(WINDOW))
    given_out = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    share = held.shares / WINDOW
    off = np.abs(given_out - share * np.arange(1, WINDOW + 1)[:, None])
    assert (off.max(axis=0) <= 1 + share * len(weights)).all()


@settings(max_examples=30, deadline=None)
@given(weights=weight_lists, start=st.integers(0, 3 * WINDOW), seed=st.integers(0, 9), data=st.data())
def test_random_access_is_what_counting_gives(weights, start, seed, data):
    held = make(weights, seed=seed)
    rows = start + np.arange(500)
    sources, turns = held(rows)
    had = held.before(start)
    for source, turn in zip(sources, turns):
        assert turn == had[source]
        had[source] += 1
    assert had.tolist() == held.before(start + 500).tolist() and had.sum() == start + 500
    some = np.array(data.draw(st.lists(st.integers(0, 499), min_size=1, max_size=20)))
    assert held(rows[some])[0].tolist() == sources[some].tolist()
    assert held(rows[some])[1].tolist() == turns[some].tolist()


@pytest.mark.parametrize("start", [0, WINDOW - 100, 10**15])
def test_far_rows_cost_what_near_ones_do(start):
    held = make((5, 3, 2))
    assert held.before(start).sum() == start
    sources, turns = held(start + np.arange(200))
    assert abs((sources == 0).sum() - 100) < 4
    assert abs(turns[sources == 0][0] - start / 2) < 2


def test_one_source_has_every_row():
    sources, turns = make((3.0,))(np.arange(WINDOW - 5, WINDOW + 5))
    assert not sources.any() and turns.tolist() == list(range(WINDOW - 5, WINDOW + 5))


def test_no_stride_sees_one_source_more():
    sources, _ = make((1, 1))(np.arange(WINDOW))
    for stride in (2, 3, 4, 8, 64):
        of_stride = sources[::stride]
        assert abs(of_stride.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(of_stride))


def test_seed_and_name_decide_where_rows_fall():
    places = lambda **options: make((1, 2), **options)(np.arange(300))[0].tolist()
    assert places() == places() != places(seed=1)
    assert places() != Apportionment(("x", "y"), (1, 2))(np.arange(300))[0].tolist()


def test_it_can_begin_in_the_middle_of_a_run():
    before, after = make((1, 1)), make((1, 3), begin=1001, already=(500, 501))
    assert after.before(1001).tolist() == [500, 501]
    sources, turns = after(1001 + np.arange(400))
    assert turns[sources == 0].tolist() == list(range(500, 500 + (sources == 0).sum()))
    assert turns[sources == 1].tolist() == list(range(501, 501 + (sources == 1).sum()))
    assert before.before(1001).sum() == 1001
