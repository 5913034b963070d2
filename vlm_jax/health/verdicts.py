"""The steps in flight, and what the guards of those that are done have said."""

from __future__ import annotations

import collections
import enum
from collections.abc import Mapping

import jax
import numpy as np

from vlm_jax.health.guards import Guards

WATCHED = ("skipped", "spikes")


class Verdict(enum.Enum):
    """What is to be done after a step."""

    GO_ON = enum.auto()
    REWIND = enum.auto()
    STOP = enum.auto()


class Verdicts:
    """Reads what the guards said of each step once it is done on the devices, in order.

    `ahead` steps may wait on the devices, so that the host does not wait for the last one. As soon as one is bad the
    rest is waited for, and while there is trouble every step: when something is to be done, it is about the newest.
    """

    def __init__(self, guards: Guards, ahead: int):
        self._limits = {"skipped": guards.not_finite, "spikes": None}
        if guards.spikes is not None and guards.spikes.action == "rewind":
            self._limits["spikes"] = guards.spikes.in_a_row
        self._ahead = min(ahead, *(limit - 1 for limit in (*self._limits.values(), ahead + 1) if limit is not None))
        self._in_flight: collections.deque[dict[str, jax.Array]] = collections.deque()
        self.forget()

    def forget(self) -> None:
        """Steps before now no longer count."""
        self._in_flight.clear()
        self._in_a_row = dict.fromkeys(WATCHED, 0)

    @property
    def troubled(self) -> bool:
        """Whether the last step read was one of those of which a few in a row have consequences."""
        return any(self._in_a_row[name] for name, limit in self._limits.items() if limit is not None)

    @property
    def not_finite(self) -> int:
        """Such steps in a row, up to the last one read."""
        return self._in_a_row["skipped"]

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """A step that was sent to the devices. Its scalars come to the host as soon as they are there."""
        watched = {name: metrics[name] for name in WATCHED if name in metrics}
        for value in watched.values():
            value.copy_to_host_async()
        self._in_flight.append(watched)

    def settle(self, all_of_them: bool = False) -> Verdict:
        """Waits until no more than `ahead` steps, or none, are in flight; says what is to be done."""
        while self._in_flight and (all_of_them or self.troubled or len(self._in_flight) > self._ahead):
            for name, value in self._in_flight.popleft().items():
                self._in_a_row[name] = self._in_a_row[name] + 1 if np.asarray(value) > 0 else 0
        reached = {name for name, limit in self._limits.items() if limit is not None and self._in_a_row[name] >= limit}
        return Verdict.STOP if "skipped" in reached else Verdict.REWIND if reached else Verdict.GO_ON
