"""What Orbax and TensorStore would write to a terminal; what goes wrong reaches us as exceptions all the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterator


@functools.cache
def silence_log() -> None:
    """Drops Orbax's records from absl's log, of which a damaged array alone makes hundreds of lines."""
    from absl import logging as _  # noqa: F401  (importing it makes the logger)

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


@contextlib.contextmanager
def all_reads_finished() -> Iterator[None]:
    """Event loops opened in here end all their tasks before they close.

    Orbax leaves its loop at the first array that it cannot read, and TensorStore then prints a traceback for every
    other read that ends after the loop is closed.
    """
    new_event_loop = asyncio.new_event_loop

    def patient() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        close = loop.close

        def finish() -> None:
            if tasks := asyncio.all_tasks(loop):
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            close()

        loop.close = finish
        return loop

    asyncio.new_event_loop = patient
    try:
        yield
    finally:
        asyncio.new_event_loop = new_event_loop
