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
) -> Iterator[tuple[dict[str, np.ndarray], list]]:
    """`load(step, rows)` of steps 0, 1, ..., with the rows of a step shared among threads and joined in order.

    Close it (`.close()`) to stop the threads.
    """
    import grain

    chunks = np.array_split(rows, -(-len(rows) // CHUNK))
    parts = grain.MapDataset.range(steps * len(chunks))
    parts = parts.map(lambda part: load(int(part) // len(chunks), chunks[int(part) % len(chunks)]))
    buffer = prefetch * len(chunks)  # grain warns of threads that could have nothing to do
    options = grain.ReadOptions(num_threads=min(threads, buffer), prefetch_buffer_size=buffer)
    return iter(parts.to_iter_dataset(options).batch(len(chunks), drop_remainder=True, batch_fn=_join))


def _join(parts):
    batches, notes = zip(*parts)
    if len(batches) == 1:
        return batches[0], notes[0]
    batch = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return batch, [note for part in notes for note in part]
