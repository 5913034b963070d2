"""SIGINT and SIGTERM: what a run makes of the first one, and that the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds to clean up in, for a program that ends at the first signal.
PATIENCE = 10.0


class Stopped(KeyboardInterrupt):
    """A signal came where nothing is to be finished and saved first.

    `code` is 128 + signal, as shells have it, so that a script does not take a stopped run for a finished one.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class Stop:
    """The signal that asked this process to stop, and the one that all processes have agreed to stop for.

    Attributes:
      asks: the first signal only asks; else it raises `Stopped` in the main thread.
    """

    def __init__(self):
        self.signal: int | None = None
        self.agreed: int | None = None
        self.asks = False

    @property
    def exit_code(self) -> int:
        """128 + signal; 0 where none was agreed on."""
        return 0 if self.agreed is None else 128 + self.agreed

    def by_now(self, link) -> int:
        """The exit code for a signal that some process of `link` has got; 0 where none has. All call it."""
        self.agreed = next((number for number in link.gather(self.signal) if number is not None), None)
        return self.exit_code

    @contextlib.contextmanager
    def only_asked(self) -> Iterator[None]:
        """In the block a signal asks, and whoever runs it looks at `signal`."""
        self.asks = True
        try:
            yield
        finally:
            self.asks = False


@contextlib.contextmanager
def on_signals(end: Callable[[str, int], None]) -> Iterator[Stop]:
    """A `Stop` that the two signals set while the block runs.

    Args:
      end: called with a line and the exit code, from a thread, at the second signal, and where `PATIENCE` seconds after
        `Stopped` the program has not ended. The main thread may be in a C function that lasts, and handles no signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # a notebook's worker: signals are not ours
        yield stop
        return

    def handle(number, _frame):
        if stop.signal is None:
            stop.signal = number
            if not stop.asks:
                raise Stopped(number)

    told, tells = socket.socketpair()
    tells.setblocking(False)
    watching = threading.Thread(target=_watch, args=(told, stop, end), name="signals", daemon=True)
    watching.start()
    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    woken = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in previous.items():
            signal.signal(number, handler)
        tells.close()
        watching.join()


def _watch(told: socket.socket, stop: Stop, end: Callable[[str, int], None]) -> None:
    """Reads the numbers of signals, which C writes as they come."""
    with told:
        first = _next(told)
        if first is None:
            return
        told.settimeout(None if stop.asks else PATIENCE)
        try:
            second = _next(told)
        except TimeoutError:
            end(str(Stopped(first)), Stopped(first).code)
            return
        if second is not None:
            end(f"stopped at once by a second {signal.Signals(second).name}", Stopped(second).code)


def _next(told: socket.socket) -> int | None:
    """The next of `SIGNALS`; None where no more will come."""
    while number := told.recv(1):
        if number[0] in SIGNALS:
            return number[0]
    return None
