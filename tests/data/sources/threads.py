"""Sources read by several threads, and by a copy as worker processes get it."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.data.sources.tars import value


def check_threads_and_copies(source) -> None:
    """Of a source whose record k has an image of value k: four threads read it and a copy of it at once."""
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source and copy.fingerprint == source.fingerprint

    def wrong(seed: int) -> list[int]:
        indices = np.random.default_rng(seed).integers(0, len(source), 100).tolist()
        return [index for index in indices if value(source[index]) != index or value(copy[index]) != index]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wrong, range(4))) == [[]] * 4
