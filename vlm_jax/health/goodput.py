"""What the wall time of a run went to, over all its restarts: `WORKDIR/goodput.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_jax.health.phases import NAMES, STEPS, Phases
from vlm_jax.report.artifacts import Table
from vlm_jax.report.format import duration
from vlm_jax.report.writers import replace_file


class Ledger:
    """Seconds by phase of this process and of those before it in the same workdir.

    A process that is killed leaves what it wrote last. Steps that it did after its last checkpoint are done again by
    the next one, whose time for them is `REPEATED`. Goodput is the share of the steps that were not.

    Args:
      path: the file; None keeps nothing.
      phases: of this process.
      furthest: the last step that is known to have been done before.
    """

    def __init__(self, path: Path | None, phases: Phases, furthest: int = 0):
        self._path, self._phases = path, phases
        before = _read(path)
        self._sessions, self._before = before["sessions"] + 1, before["seconds"]
        self._furthest = max(furthest, before["furthest"])

    def repeats(self, step: int) -> bool:
        """Whether the step after the first `step` ones was done before, and lost."""
        self._furthest = max(self._furthest, step)
        return step < self._furthest

    def seconds(self) -> dict[str, float]:
        """Of all processes so far."""
        now = self._phases.seconds()
        return {name: self._before.get(name, 0.0) + now.get(name, 0.0) for name in NAMES}

    @property
    def percent(self) -> float:
        seconds = self.seconds()
        return 100 * seconds[STEPS] / max(1e-9, sum(seconds.values()))

    def write(self) -> None:
        """Raises OSError where the workdir cannot be written."""
        if self._path is None:
            return
        furthest = max(self._furthest, self._phases.step)
        seconds = {name: round(value, 3) for name, value in self.seconds().items()}
        content = {"format": 1, "sessions": self._sessions, "furthest": furthest, "seconds": seconds}
        replace_file(self._path, json.dumps(content, indent=1).encode() + b"\n")

    def line(self) -> str:
        """`goodput 91% of 1h02m: steps 55m10s, ...`, the largest first."""
        seconds = self.seconds()
        parts = sorted(((v, name) for name, v in seconds.items() if v >= 0.5), reverse=True)
        shown = ", ".join(f"{name} {duration(value)}" for value, name in parts)
        return f"goodput {self.percent:.0f}% of {duration(sum(seconds.values()))}" + (f": {shown}" if shown else "")

    def table(self) -> Table:
        """For the report."""
        seconds = self.seconds()
        total = max(1e-9, sum(seconds.values()))
        rows = [(name, duration(value), f"{100 * value / total:.1f}%") for name, value in seconds.items()]
        sessions = f"{self._sessions} session{'s' if self._sessions > 1 else ''}"
        return Table(f"Wall time of {sessions}, goodput {self.percent:.0f}%", ("", "time", "share"), rows)


def _read(path: Path | None) -> dict[str, Any]:
    nothing = {"sessions": 0, "furthest": 0, "seconds": {}}
    try:
        found = json.loads(path.read_bytes()) if path else nothing
        seconds = {name: float(found["seconds"].get(name, 0.0)) for name in NAMES}
        return {"sessions": int(found["sessions"]), "furthest": int(found["furthest"]), "seconds": seconds}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or none of ours: it is only a tally
        return nothing
