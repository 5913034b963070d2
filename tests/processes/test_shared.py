"""A cache of programs is used by all processes or by none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from vlm_jax.shared import is_shared


class OneOfTwo:
    """A link between two threads."""

    count = 2

    def __init__(self, index: int, both: list, barrier: Barrier):
        self.index, self._both, self._barrier = index, both, barrier

    def gather(self, value):
        self._both[self.index] = value
        self._barrier.wait(10)
        values = list(self._both)
        self._barrier.wait(10)
        return values


@pytest.mark.parametrize("second, shared", [("a", True), ("b", False)])
def test_a_folder_is_shared_where_the_second_sees_what_the_first_writes(tmp_path, second, shared):
    folders: list[Path] = [tmp_path / "a", tmp_path / second]
    both, barrier = [None, None], Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda i: is_shared(folders[i], OneOfTwo(i, both, barrier)), range(2))
        assert list(found) == [shared, shared]
    assert not list((tmp_path / "a").iterdir())
