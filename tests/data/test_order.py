from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.order import permutation


def order(n, seed=0, name="source", epoch=0):
    return permutation(n, seed=seed, name=name, epoch=epoch)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 2000), seed=st.integers(0, 2**63), name=st.text(max_size=5), epoch=st.integers(0, 10**6))
def test_every_index_comes_once(n, seed, name, epoch):
    indices = order(n, seed, name, epoch)(np.arange(n))
    np.testing.assert_array_equal(np.sort(indices), np.arange(n))


@pytest.mark.parametrize("n", range(1, 66))
def test_every_index_comes_once_in_small_sources(n):
    np.testing.assert_array_equal(np.sort(order(n)(np.arange(n))), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 2**40), data=st.data())
def test_inverse_undoes_it_at_any_size(n, data):
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    indices = order(n)(positions)
    assert indices.min() >= 0 and indices.max() < n
    np.testing.assert_array_equal(order(n).inverse(indices), positions)


def test_a_position_does_not_depend_on_what_is_asked_with_it():
    together = order(1000)(np.arange(1000))
    np.testing.assert_array_equal([order(1000)(np.array([k]))[0] for k in range(50)], together[:50])


def test_seed_name_and_epoch_change_the_order():
    positions = np.arange(1000)
    orders = [order(1000), order(1000, seed=1), order(1000, name="other"), order(1000, epoch=1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:  # two random orders of any size agree in one place on average
            assert (one(positions) == other(positions)).sum() < 10


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_tiny_source_are_equally_likely(n):
    epochs, count = 1200, math.factorial(n)
    seen = collections.Counter(tuple(order(n, epoch=e)(np.arange(n)).tolist()) for e in range(epochs))
    expected = epochs / count
    chi_squared = sum((k - expected) ** 2 / expected for k in seen.values()) + (count - len(seen)) * expected
    assert chi_squared < (count - 1) + 5 * math.sqrt(2 * (count - 1))


def test_it_looks_random():
    n, cells = 100_000, 100
    indices = order(n)(np.arange(n))
    # Where each hundredth of the positions goes, by hundredths.
    table = np.histogram2d(np.arange(n), indices, bins=cells)[0]
    chi_squared = ((table - n / cells**2) ** 2 / (n / cells**2)).sum()
    freedom = (cells - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)
    # Neighbours are no neighbours any more.
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 5 / math.sqrt(n)


def test_outside_the_source_is_an_error():
    with pytest.raises(IndexError):
        order(10)(np.array([10]))
    with pytest.raises(ValueError):
        order(0)


def test_the_order_is_the_same_for_ever():
    # Runs that resume depend on it.
    assert order(10)(np.arange(10)).tolist() == PINNED


PINNED = [3, 2, 5, 7, 6, 9, 0, 8, 4, 1]
