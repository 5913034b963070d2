"""What a process is doing, since when, and how long it did each thing in all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

START, COMPILE, DATA, STEPS = "start-up", "compile", "data wait", "steps"
EVALUATION, CHECKPOINTS, REPEATED = "evaluation", "checkpoints", "repeated steps"
NAMES = (START, COMPILE, DATA, STEPS, EVALUATION, CHECKPOINTS, REPEATED)


class Phases:
    """The wall time of the main thread, cut into phases without gaps. Other threads may read it.

    Time is `time.monotonic`: a clock that is set, forwards or back, changes nothing.

    Attributes:
      step: updates done, as the loop last said.
      repeating: steps and their data count as `REPEATED`: they were done before, and lost.
    """

    def __init__(self, began: float | None = None):
        """`began`: when `START` did, in seconds of `time.monotonic`; now unless given."""
        self.step, self.repeating = 0, False
        self._seconds = dict.fromkeys(NAMES, 0.0)  # of one size, for threads that read it
        self._at = START, time.monotonic() if began is None else began

    @property
    def at(self) -> tuple[str, float]:
        """The phase, and the time that it began."""
        return self._at

    def seconds(self) -> dict[str, float]:
        """By phase, up to now."""
        name, since = self._at
        seconds = dict(self._seconds)
        seconds[self._account(name)] += max(0.0, time.monotonic() - since)
        return {name: seconds[name] for name in NAMES if seconds[name]}

    def enter(self, name: str) -> None:
        """Ends the phase that is, and begins one; to begin the same again also says that there is progress."""
        now = time.monotonic()
        old, since = self._at
        self._seconds[self._account(old)] += now - since
        self._at = name, now

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """The block is of this phase; then the one before goes on."""
        before = self._at[0]
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def _account(self, name: str) -> str:
        return REPEATED if self.repeating and name in (DATA, STEPS) else name
