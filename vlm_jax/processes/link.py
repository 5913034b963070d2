"""A process's line to the others: values for all, an agreed step to stop at, and an end together."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from vlm_jax.errors import UserError
from vlm_jax.processes.hub import LAST, Hub, encode, gone
from vlm_jax.processes.leave import leave
from vlm_jax.redact import hidden, tell
from vlm_jax.stop import Stopped

T = TypeVar("T")
# An error within so many seconds of another process's end is an echo of it, and not told.
ECHO = 2.0


class Link:
    """One of several processes. Its thread listens, and ends the process when another one has failed or is gone.

    Args:
      coordinator: HOST:PORT of the hub. index: of this process. count: of processes.
      same: lines that must be those of process 0.
      timeout: seconds to wait for all processes.
      hub: process 0's own, kept as long as the link.

    Raises:
      UserError: process 0 is not there, or has refused the job; the line says why.
    """

    def __init__(
        self, coordinator: str, index: int, count: int, same: Sequence[str], timeout: float, hub: Hub | None = None
    ):
        self.index, self.count, self._hub = index, count, hub
        self._gathered: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._calls, self._between_steps = 0, threading.Lock()
        self._asked = self._done = False
        self._stop: tuple[int, int] | None = None
        self._socket = _connect(coordinator, timeout)
        self._send({"process": index, "count": count, "same": list(same)})
        self._lines = self._socket.makefile("rb")
        try:
            self._socket.settimeout(timeout + LAST)  # process 0 says first who is missing
            answer = json.loads(self._lines.readline() or b"{}")
            self._socket.settimeout(None)
        except (OSError, ValueError):
            answer = {}
        if "go" not in answer:
            nobody = f"what answers at --coordinator={coordinator} is not process 0 of this job, or has ended."
            raise UserError(answer.get("end", nobody))
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    def say(self, line: str) -> None:
        """Prints `line` once, not once for every process."""
        if self.index == 0:
            print(line, flush=True)

    def gather(self, value: T) -> list[T]:
        """The values (JSON) that all processes have given, by process; all call it equally often."""
        self._send({"gather": value})
        return self._gathered.get()

    def in_turn(self, make: Callable[[], T]) -> T:
        """`make()`, by process 0 first, so that the others find the files that it has written."""
        made = [make()] if self.index == 0 else []
        self.gather(None)
        return made[0] if made else make()

    def stops(self, signal: int | None) -> int | None:
        """Asked before every step: the signal to stop for, the same on all processes at the same step, or None.

        Once it is a signal it stays one. What is agreed on is a number of calls: that of a step falls where training
        goes back to a checkpoint.

        Args:
          signal: that this process has got, if any. The others learn of it within a step or two.
        """
        if signal is not None and not self._asked:
            self._asked = True
            self._send({"stop": signal})
        with self._between_steps:
            self._calls += 1
        return self._stop[1] if self._stop and self._calls >= self._stop[0] else None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """An error in the block ends all processes, with one line and one exit code."""
        try:
            yield
        except UserError as error:
            self.end(str(error), error.code)
        except Stopped as stopped:
            self.end(str(stopped), stopped.code)
        except KeyboardInterrupt:
            self.end("interrupted", 130)
        except Exception as error:
            time.sleep(ECHO)
            tell(traceback.format_exc().rstrip())
            self.end(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", 1)
        self._done = True
        self._send({"bye": True})

    def end(self, line: str, code: int) -> NoReturn:
        """Ends all processes, from whichever thread, with one line and one exit code."""
        self._send({"failed": hidden(line), "code": code})
        time.sleep(2 * LAST)  # the answer ends this process
        self._end(line, code, True)

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the listening thread knows better what happened
            self._socket.sendall(encode(message))

    def _listen(self) -> None:
        try:
            for line in self._lines:
                self._hear(json.loads(line))
        except (OSError, ValueError):  # gone, in the middle of a line where it was killed
            pass
        if not self._done:
            self._end(gone(0), 1, True)

    def _hear(self, message: dict[str, Any]) -> None:
        if "gathered" in message:
            self._gathered.put(message["gathered"])
        elif "where" in message:
            self._between_steps.acquire()  # no step begins until all know where to stop
            self._send({"at": self._calls})
        elif "stop_at" in message:
            self._stop = message["stop_at"], message["signal"]
            self._between_steps.release()
        elif "end" in message:
            self._end(message["end"], message["code"], self.index == 0)

    def _end(self, line: str, code: int, tell: bool) -> NoReturn:
        """Ends the process at once: whatever it waits for will not come, and jax would wait for it at exit."""
        leave(line if tell else None, code)


def _connect(coordinator: str, timeout: float) -> socket.socket:
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            left = max(1.0, deadline - time.monotonic())
            line = socket.create_connection((host.strip("[]"), int(port)), timeout=left)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"nothing answers at --coordinator={coordinator} after {timeout:g} s ({error.strerror or error}); "
                    "start process 0 there, or raise --process_timeout."
                ) from error
            time.sleep(0.2)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_NODELAY": 1}.items():
        if hasattr(socket, name):  # a host that is lost without a word is noticed after 90 s
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return line
