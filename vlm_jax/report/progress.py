"""How far the run is: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from vlm_jax.redact import hidden
from vlm_jax.report.format import duration, rate

# What the line shows of `train/NAME`, in this order.
SHOWN: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:#.4g}",
    "learning_rate": lambda value: f"lr {value:.1e}",
    "examples_per_s": lambda value: f"{rate(value)} examples/s",
    "eta_s": lambda value: f"eta {duration(value)}",
}


class _Lasting:
    """A text stream that outlives its reader: once the pipe or the terminal is gone, writing does nothing."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:  # a caption may hold what the terminal cannot show
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError):
                self._lose()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._lose()

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("the stream is gone")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _lose(self) -> None:
        # What is still buffered would fail once more when the interpreter exits: let it go nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._stream = None


class Progress:
    """Shows the step, loss, learning rate, speed and time left of a run that goes from step `start` to `total`.

        with Progress(2800, start=0) as progress:
            progress.update(step)           # every step: moves the bar
            progress.update(step, metrics)  # at log times: also refreshes the numbers, or prints a line

    A terminal gets a bar; anything else gets lines such as
    `step 200/2800  loss 3.214  lr 1.0e-03  1331 examples/s  eta 1m42s`. Output that nobody reads any more (a closed
    pipe, a lost terminal) never stops the run.
    """

    def __init__(self, total: int, start: int = 0, *, stream: TextIO | None = None, quiet: bool = False):
        """`stream` is standard output by default; `quiet` shows nothing (every process but the first)."""
        self.total, self.start = total, start
        self._out = _Lasting(None if quiet else stream or sys.stdout)
        self._bar = self._task = None
        self._drawn = float("-inf")

    def __enter__(self) -> Progress:
        if self._out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._open_bar()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Says that `step` steps are done; `metrics` (keys `train/NAME` or `NAME`) are shown where given."""
        numbers = ""
        if metrics is not None:
            values = {name.removeprefix("train/"): float(value) for name, value in metrics.items()}
            numbers = "  ".join(show(values[name]) for name, show in SHOWN.items() if name in values)
        if self._bar is None:
            if metrics is not None:
                self.note(f"step {step}/{self.total}  {numbers}".rstrip())
            return
        self._bar.update(self._task, completed=step, **({"numbers": numbers} if numbers else {}))
        now = time.monotonic()
        if metrics is not None or now - self._drawn > 0.1:  # drawing at each of a thousand steps a second costs
            self._drawn = now
            self._bar.refresh()

    def note(self, line: str) -> None:
        """Prints `line`, above the bar where there is one."""
        line = hidden(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self._out.write(line + "\n")
            self._out.flush()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        text = lambda template: TextColumn(template, markup=False)
        self._bar = Bar(
            text("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            text("{task.fields[numbers]}"),
            console=Console(file=self._out),
            auto_refresh=False,  # no drawing thread: drawing then can neither race with a write nor fail unseen
            expand=True,
        )
        self._task = self._bar.add_task("", total=self.total, completed=self.start, numbers="")
        self._bar.start()
