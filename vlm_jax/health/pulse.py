"""What a process writes while it lives: `WORKDIR/heartbeats/PROCESS.json`, and process 0 the ledger of goodput."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from pathlib import Path

from vlm_jax.health.goodput import Ledger
from vlm_jax.health.phases import Phases
from vlm_jax.report.writers import replace_file


def forget_others(folder: Path, count: int) -> None:
    """Removes what processes wrote that a run of `count` does not have."""
    for path in folder.glob("*.json"):
        if path.stem.isdecimal() and int(path.stem) >= count:
            path.unlink(missing_ok=True)


class Pulse:
    """A thread that writes both every `every` seconds; what cannot be written is left, and tried again."""

    def __init__(self, folder: Path, process: int, phases: Phases, ledger: Ledger, every: float):
        self._path, self._process = folder / f"{process}.json", process
        self._phases, self._ledger, self._every = phases, ledger, every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        self._write(ended=False)
        while not self._stopped.wait(self._every):
            self._write(ended=False)
        self._write(ended=True)

    def _write(self, ended: bool) -> None:
        phase, since = self._phases.at
        content = {
            "process": self._process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._phases.step,
            "phase": "ended" if ended else phase,
            "seconds_in_phase": round(time.monotonic() - since, 1),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            replace_file(self._path, json.dumps(content).encode() + b"\n")
            self._ledger.write()
