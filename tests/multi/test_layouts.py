"""Rows, one step and twenty, the same in one process and in several, however the mesh lies over them."""

import jax
import numpy as np
import pytest

from tests.multi import layouts

# What each of two processes with two devices holds of 16 rows.
FIRST, SECOND = list(range(8)), list(range(8, 16))
EVERY = FIRST + SECOND
QUARTERS = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
ROWS_OF_TWO = {"contiguous": (FIRST, SECOND), "tensor": (EVERY, EVERY), "scattered": QUARTERS}
# And of four, with two each. Round the processes, `tensor` takes 0 and 1 together, and 2 and 3.
PAIRS = [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]
HALVES = [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
ROWS_OF_FOUR = {
    "contiguous": [EVERY[i : i + 4] for i in range(0, 16, 4)],
    "tensor": [HALVES[0], HALVES[0], HALVES[1], HALVES[1]],
    "scattered": PAIRS,
}


@pytest.fixture(scope="module")
def four(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    launch(4, "tests.multi.layouts", str(folder), *layouts.LAYOUTS).done(seconds=1500)
    return folder


def check_same(folder, name, rows, tmp_path):
    """What the processes have written against one process with as many devices."""
    count = len(rows)
    one = layouts.measure(tmp_path, name, jax.devices()[: 2 * count], count)
    assert one["rows"].tolist() == EVERY
    for process in range(count):
        found = np.load(folder / f"{name}-{process}.npz")
        assert found["rows"].tolist() == rows[process]
        for key in (key for key in one if key.startswith("batch/")):
            np.testing.assert_array_equal(found[key], one[key][rows[process]], err_msg=key)
        for key in (key for key in one if key.startswith("params/")):
            np.testing.assert_allclose(found[key], one[key], rtol=0, atol=1e-6, err_msg=key)
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=0, atol=1e-4)
    apart = max(np.abs(found[key] - one[key]).max() for key in one if key.startswith("params/"))
    losses = np.abs(found["losses"] - one["losses"]).max()
    print(f"{name}, {count} processes: parameters after a step {apart:.1e} apart, losses of 20 steps {losses:.1e}")


@pytest.mark.full
def test_two_processes_equal_one(launch, tmp_path):
    """One test for both meshes, since the two share their processes."""
    launch(2, "tests.multi.layouts", str(tmp_path), "tensor", "scattered").done()
    for name in ("tensor", "scattered"):
        check_same(tmp_path, name, ROWS_OF_TWO[name], tmp_path)


@pytest.mark.full
def test_two_processes_equal_one_where_rows_are_in_a_row(launch, tmp_path):
    launch(2, "tests.multi.layouts", str(tmp_path), "contiguous").done()
    check_same(tmp_path, "contiguous", ROWS_OF_TWO["contiguous"], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", list(layouts.LAYOUTS))
def test_four_processes_equal_one(four, name, tmp_path):
    check_same(four, name, ROWS_OF_FOUR[name], tmp_path)


@pytest.mark.full
def test_four_processes_and_one_restore_what_two_have_saved(launch, tmp_path):
    launch(2, "tests.multi.layouts", str(tmp_path), "scattered").done()
    saved = np.load(tmp_path / "scattered-0.npz")["words"].tolist()
    one = layouts.restored(tmp_path, tmp_path / "run", jax.devices()[:4])
    assert int(one["step"]) == 1 and one["words"].tolist() == saved
    launch(4, "tests.multi.layouts", str(tmp_path), str(tmp_path / "run"), devices=1).done()
    for process in range(4):
        found = np.load(tmp_path / f"run-{process}.npz")
        assert found["words"].tolist() == saved
        for key in (key for key in one if key.startswith("params/")):
            np.testing.assert_allclose(found[key], one[key], rtol=0, atol=1e-6, err_msg=key)
