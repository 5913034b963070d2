import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.nn.positions import resample, resample_at, sincos2d, sincos2d_at, within_segments


def test_sincos_separates_rows_from_columns():
    table = sincos2d(3, 4, 16).reshape(3, 4, 16)
    np.testing.assert_array_equal(table[0, :, :8], table[2, :, :8])  # the first half knows only x
    np.testing.assert_array_equal(table[:, 0, 8:], table[:, 3, 8:])  # the second only y
    np.testing.assert_allclose(table[2, 3, [0, 4, 8, 12]], [np.sin(3), np.cos(3), np.sin(2), np.cos(2)], rtol=1e-6)
    assert len(np.unique(table.reshape(12, 16), axis=0)) == 12


def test_sincos_needs_a_width_divisible_by_4():
    with pytest.raises(UserError, match="divisible by 4"):
        sincos2d(2, 2, 6)


def test_the_same_grid_is_left_alone():
    posemb = jnp.arange(10.0).reshape(5, 2)
    assert resample(posemb, (2, 2), prefix=1) is posemb


def test_a_ramp_stays_a_ramp_and_the_prefix_stays():
    ramp = jnp.tile(jnp.arange(8.0), 8)[:, None]  # columns 0..7 of an 8 x 8 grid
    posemb = jnp.concatenate([jnp.full((1, 1), -7.0), ramp])
    new = resample(posemb, (8, 4), prefix=1)
    assert new.shape == (33, 1) and new[0, 0] == -7
    grid = new[1:].reshape(8, 4)
    np.testing.assert_allclose(grid, np.tile(grid[0], (8, 1)), atol=1e-6)
    np.testing.assert_allclose(grid[0, 1:3], [2.5, 4.5], atol=1e-6)  # away from the borders: centres of column pairs


def test_from_a_grid_that_is_not_square():
    posemb = jnp.arange(6.0)[:, None]
    np.testing.assert_array_equal(resample(posemb, (2, 3), old_grid=(2, 3)), posemb)
    with pytest.raises(UserError, match="6 learned positions do not form a grid of 2 x 2"):
        resample(posemb, (3, 3))


GRIDS = [(3, 5), (4, 4), (9, 2), (1, 1)]


def every_position(grid):
    return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)[None]


@pytest.mark.parametrize("grid", GRIDS)
def test_positions_one_by_one_are_those_of_the_whole_grid(grid):
    posemb = jax.random.normal(jax.random.key(0), (16, 8))
    at = every_position(grid)
    np.testing.assert_allclose(resample_at(posemb, at, np.full(at.shape, grid))[0], resample(posemb, grid), atol=1e-5)
    np.testing.assert_allclose(sincos2d_at(at, 8)[0], sincos2d(*grid, 8), atol=1e-6)


def test_places_in_segments():
    ids = jnp.array([[1, 1, 2, 2, 2, 3, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(within_segments(ids), [[0, 1, 0, 1, 2, 0, 0, 0], [0] * 8])
