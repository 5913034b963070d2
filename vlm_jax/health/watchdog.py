"""Ends a process in which nothing moves any more, with the stacks of all its threads, so that it is started again."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from vlm_jax.data.workers import STACKS
from vlm_jax.errors import Fault, UserError
from vlm_jax.health.phases import COMPILE, DATA, STEPS, Phases
from vlm_jax.processes.leave import briefly
from vlm_jax.redact import tell

# Seconds between two looks; short limits are looked at more often.
TICK = 1.0
# What to look for, by phase.
HINTS = {
    DATA: "a read hangs",
    STEPS: "another process or a device hangs",
    COMPILE: "a compiler or another process hangs",
}


@dataclasses.dataclass(frozen=True)
class Stalls:
    """How long a process may be at one thing, in seconds, before it is ended; None waits for ever.

    Attributes:
      data: waiting for a batch. step: a step, and waiting for those before it.
      other: anything else by itself: start-up, the first step, which compiles, one evaluator, a checkpoint.
      heartbeat: seconds between what each process writes to `WORKDIR/heartbeats/`.
    """

    data: float | None = 900.0
    step: float | None = 900.0
    other: float | None = 7200.0
    heartbeat: float = 30.0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value <= 0:
                raise UserError(f"stalls.{field.name}={value:g} must be above zero (seconds).")

    def limit(self, phase: str) -> float | None:
        return {DATA: self.data, STEPS: self.step}.get(phase, self.other)

    @property
    def longest(self) -> float | None:
        limits = (self.data, self.step, self.other)
        return None if None in limits else max(limits)


@contextlib.contextmanager
def watched(stalls: Stalls, end: Callable[[str, int], None], began: float | None = None) -> Iterator[Phases]:
    """The phases of what happens in the block, under a watchdog. `began`: as `Phases` has it."""
    phases = Phases(began)
    watchdog = Watchdog(stalls, phases, end)
    try:
        yield phases
    finally:
        watchdog.stop()


class Watchdog:
    """A thread that looks at the phase the main thread is in; `stop` ends it.

    It counts its own looks: a process that is stopped and goes on (Ctrl-Z, a laptop that sleeps) has not stalled. It
    touches no file, for what hangs may be the workdir's. Where the main thread hangs and lets no other thread run, a
    timer of `faulthandler` ends the process after twice the longest limit.

    Args:
      end: called with a line and the exit code; it ends this process and those it works with.
    """

    def __init__(self, stalls: Stalls, phases: Phases, end: Callable[[str, int], None]):
        self._stalls, self._phases, self._end = stalls, phases, end
        limits = [x for x in (stalls.data, stalls.step, stalls.other) if x is not None]
        self._tick = min([TICK, *(limit / 4 for limit in limits)])
        self._stopped = threading.Event()
        self._log = _log()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limits:
            self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        seen, idle, then = self._phases.at, 0.0, time.monotonic()
        while not self._stopped.wait(self._tick):
            if self._stalls.longest is not None and self._log is not None:
                faulthandler.dump_traceback_later(2 * self._stalls.longest, exit=True, file=self._log)
            now, at = time.monotonic(), self._phases.at
            idle = idle + min(now - then, 2 * self._tick) if at is seen else 0.0
            seen, then = at, now
            limit = self._stalls.limit(at[0])
            if limit is not None and idle >= limit:
                self._stalled(at[0], idle)
                return

    def _stalled(self, phase: str, seconds: float) -> None:
        hint = HINTS.get(phase, "it hangs, or config.stalls.other is too short")
        line = f"nothing has moved for {seconds:.0f} s in {phase!r}, after step {self._phases.step}: {hint}"
        line += "; the stacks of all threads stand above. Start the run again, and it goes on."
        briefly(lambda: self._stacks(f"stacks of all threads, after {seconds:.0f} s of {phase}:"))
        self._end(line, Fault.code)

    def _stacks(self, head: str) -> None:
        if self._log is not None:
            tell(head)
            faulthandler.dump_traceback(self._log, all_threads=True)
        _workers_too()


def _workers_too() -> None:
    """Has processes that prepare data print their stacks; they end when this one does."""
    children = [child for child in multiprocessing.active_children() if child.is_alive()]
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, STACKS)
    time.sleep(1.0 if children else 0.0)


def _log() -> TextIO | None:
    """Standard error, where it is a file that C can write to."""
    try:
        sys.__stderr__.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return sys.__stderr__
