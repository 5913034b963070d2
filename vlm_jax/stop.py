"""SIGINT and SIGTERM ask a run to stop after the step it is in; a second one stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stop:
    """The signal that asked this process to stop, and the one that all processes have agreed to stop for."""

    def __init__(self):
        self.signal: int | None = None
        self.agreed: int | None = None

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it, so that a script does not take a stopped run for a finished one."""
        return 0 if self.agreed is None else 128 + self.agreed


@contextlib.contextmanager
def on_signals() -> Iterator[Stop]:
    """A `Stop` that the two signals set while the block runs."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker: signals are not ours
        yield stop
        return

    def handle(number, _frame):
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
