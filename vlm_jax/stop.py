"""SIGINT and SIGTERM ask a run to stop after the step it is in; a second one stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
    """Whether somebody asked to stop, and by which signal."""

    def __init__(self):
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it, so that a script does not take a stopped run for a finished one."""
        return 0 if self.signal is None else 128 + self.signal


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """A `Stop` that the two signals set while the block runs."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker: signals are not ours
        yield stop
        return

    def handle(number, _frame):
        if stop:
            raise KeyboardInterrupt
        stop.signal = number

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
