"""Rows prepared by threads, ahead of the step that needs them, and joined to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

# Rows that one thread prepares at a time: few enough to share a batch among threads, many enough to be cheap.
CHUNK = 32


def stream(
    load: Callable[[int, np.ndarray], tuple[dict[str, np.ndarray], list]],
    *,
    rows: np.ndarray,
    threads: int,
    prefetch: int,
    steps: int = 2**48,
    window: int = 1,
) -> Iterator[tuple[dict[str, np.ndarray], list]]:
    """`load(step, rows)` of steps 0, 1, ..., with the rows of a step shared among threads and joined in order.

    So many rows are made together, a `window`: no two threads make one.

    Close it (`.close()`) to stop the threads.
    """
    import grain

    chunks = [rows[places] for places in chunked(rows, CHUNK, window)]
    parts = grain.MapDataset.range(steps * len(chunks))
    parts = parts.map(lambda part: load(int(part) // len(chunks), chunks[int(part) % len(chunks)]))
    buffer = prefetch * len(chunks)  # grain warns of threads that could have nothing to do
    options = grain.ReadOptions(num_threads=min(threads, buffer), prefetch_buffer_size=buffer)
    return iter(parts.to_iter_dataset(options).batch(len(chunks), drop_remainder=True, batch_fn=_join))


def chunked(rows: np.ndarray, size: int, window: int) -> list[np.ndarray]:
    """The places of rows in chunks of about `size`, in order, that begin where a window of rows begins."""
    count = -(-len(rows) // max(size, window))
    begins = np.flatnonzero(np.diff(rows // window, prepend=-1))
    even = len(rows) * np.arange(1, count) // count
    cuts = np.unique(begins[np.searchsorted(begins, even, side="right") - 1])
    return np.split(np.arange(len(rows)), cuts[cuts > 0])


def _join(parts):
    batches, notes = zip(*parts)
    if len(batches) == 1:
        return batches[0], notes[0]
    batch = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return batch, [note for part in notes for note in part]
