"""Finite scalar quantisation: every code of the grid is reached and found again, and the gradient is the bound's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses import fsq, fsq_vectors

LEVELS = (8, 5, 3, 4)


def test_codes_and_vectors_are_those_of_the_formulas(pairs):
    z = 3 * np.random.default_rng(0).standard_normal((500, 4))
    found = jax.jit(lambda z: fsq(z, LEVELS))(z.astype(np.float32))
    levels = np.array(LEVELS)
    half, offset = (levels - 1) * 0.999 / 2, np.where(levels % 2, 0, 0.5)
    rounded = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    pairs.assert_close(found.vectors, rounded / (levels // 2))
    np.testing.assert_array_equal(found.codes, (rounded + levels // 2) @ [1, 8, 40, 120])
    for channel, count in enumerate(LEVELS):
        assert len(np.unique(rounded[:, channel])) == count


def test_every_code_is_found_again():
    codes = np.arange(480).reshape(2, 240)
    vectors = np.asarray(fsq_vectors(codes, LEVELS))
    assert vectors.shape == (2, 240, 4) and np.abs(vectors).max() <= 1
    half, offset = np.array([3.5, 2, 1, 1.5]) * 0.999, np.array([0.5, 0, 0, 0.5])
    bounded = np.clip((vectors * np.array([4, 2, 1, 2]) + offset) / half, -0.9999, 0.9999)
    z = (np.arctanh(bounded) - np.arctanh(offset / half)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda z: fsq(z, LEVELS).codes)(z), codes)


def test_zero_is_a_level():
    assert not np.any(jax.jit(lambda z: fsq(z, LEVELS).vectors)(np.zeros((3, 4), np.float32)))


def test_the_gradient_goes_past_the_rounding(pairs):
    z = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    levels = np.array(LEVELS)
    half, offset = (levels - 1) * 0.999 / 2, np.where(levels % 2, 0, 0.5)
    want = (1 - np.tanh(z + np.arctanh(offset / half)) ** 2) * half / (levels // 2)
    pairs.assert_close(jax.jit(jax.grad(lambda z: fsq(z, LEVELS).vectors.sum()))(z), want)


@pytest.mark.parametrize("levels", [(8, 2), (), (1024, 1024, 1024, 1024)], ids=str)
def test_levels_that_cannot_be(levels):
    with pytest.raises(ValueError, match="levels must be at least 3 each, and their product at most 2"):
        fsq(jnp.zeros((2, len(levels))), levels)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"one channel for each of 4 levels; got \(2, 3\)"):
        fsq(jnp.zeros((2, 3)), LEVELS)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 480\); got 480"):
        fsq_vectors(np.array([480]), LEVELS)
