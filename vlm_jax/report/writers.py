"""Where metrics go: JSON lines, TensorBoard events, Weights & Biases.

All writers share three methods: `write(step, metrics)`, `truncate_after(step)` before a resumed run writes steps anew,
and `close()`. In a run of many processes only the first one has writers.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import io
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError
from vlm_jax.report import events


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: a reader, or a killed run, sees the old file or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append(file: io.FileIO, data: bytes) -> None:
    """Appends to an unbuffered file all of `data`, or, where that raises OSError, nothing."""
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


@contextlib.contextmanager
def or_told(what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """A disk that takes no more is told, and ends nothing: `what` is missing, and the run goes on."""
    try:
        yield
    except OSError as error:
        warn(f"{what} could not be written ({error.strerror or error}); training goes on")


def _step(line: bytes) -> int | None:
    """The step of one line of metrics; None where the line is torn."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None


def _json_number(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class JsonlWriter:
    """Writes `{"step": 200, "train/loss": 3.2, ...}`, one object a line, handed to the system by each `write`.

    JSON has no NaN or infinity: they are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, as in the JSON form of
    protocol buffers, so that strict parsers read the file and `float(value)` gives the number back.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens `path` to append to it, and mends the line that a killed run left half written."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._mend()
        self._file = open(self.path, "ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line; `step` may be written several times, by training and by each evaluator."""
        if "step" in metrics:
            raise ValueError("a metric cannot be named 'step'")
        line = {"step": int(step)} | {name: _json_number(value) for name, value in metrics.items()}
        append(self._file, json.dumps(line, allow_nan=False).encode() + b"\n")

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps than `step`: a run that resumes there writes them again."""
        lines = self.path.read_bytes().splitlines()
        kept = [line for line in lines if (at := _step(line)) is not None and at <= step]
        if len(kept) < len(lines):
            replace_file(self.path, b"".join(line + b"\n" for line in kept))
            self._file.close()
            self._file = open(self.path, "ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def _mend(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        lines = data.splitlines()
        while lines and _step(lines[-1]) is None:
            lines.pop()
        whole = b"".join(line + b"\n" for line in lines)
        if whole != data:
            replace_file(self.path, whole)


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The lines of a metrics file as `{"step": ..., name: value}`; a torn line is passed over, no file is no lines."""
    path = Path(path)
    lines = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if _step(line) is not None:
            lines.append({name: float(value) for name, value in json.loads(line).items() if _is_number(value)})
    return lines


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


class TensorBoardWriter:
    """Writes scalars as TensorBoard event files into a folder, without TensorFlow or tensorboard.

    The file is made at the first write, so that a run which measures nothing leaves none.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._file = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._append(events.scalars(time.time(), int(step), {name: float(value) for name, value in metrics.items()}))

    def truncate_after(self, step: int) -> None:
        """Tells TensorBoard to hide what earlier sessions wrote for later steps than `step`."""
        if any(self.folder.glob("events.out.tfevents.*")):
            self._append(events.restart(time.time(), int(step) + 1))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _append(self, event: bytes) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            now = time.time()  # TensorBoard reads the files of a folder in the order of their names
            name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
            self._file = open(self.folder / name, "xb", buffering=0)
        empty = os.fstat(self._file.fileno()).st_size == 0
        head = events.record(events.version(time.time())) if empty else b""
        append(self._file, head + events.record(event))


class WandbWriter:
    """Logs to Weights & Biases; the id kept in the workdir lets a restarted run go on in the same W&B run."""

    def __init__(self, project: str, workdir: str | os.PathLike, *, config: Mapping[str, Any] | None = None):
        """Starts the run of `workdir` in `project`, named as the folder, or continues it; `config` is shown with it.

        Raises:
          UserError: the package wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise UserError("logging to W&B needs the package wandb: pip install wandb") from None
        workdir = Path(workdir).absolute()
        workdir.mkdir(parents=True, exist_ok=True)
        kept = workdir / "wandb_id"
        if not kept.exists():
            replace_file(kept, secrets.token_hex(8).encode())
        self._run = wandb.init(
            project=project,
            name=workdir.name,
            id=kept.read_text(),
            resume="allow",
            dir=str(workdir),
            config=dict(config or {}),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({name: float(value) for name, value in metrics.items()}, step=int(step))

    def truncate_after(self, step: int) -> None:
        """Nothing to do: W&B ignores a step that it already has, and a resumed run repeats its steps exactly."""

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Several writers as one. What a full disk does not take is told once, and kept until it does.

    Args:
      warn: gets one line when a writer begins to fail.
    """

    def __init__(self, writers: Iterable[Any], warn: Callable[[str], None]):
        self._writers = tuple(writers)
        self._waiting: list[collections.deque] = [collections.deque() for _ in self._writers]
        self._warn = warn

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives `metrics` (keys `train/NAME` or `eval/EVALUATOR/NAME`) of `step` to every writer."""
        for writer, waiting in zip(self._writers, self._waiting):
            told = bool(waiting)
            waiting.append((step, functools.partial(writer.write, step, dict(metrics))))
            self._do(writer, waiting, told)

    def truncate_after(self, step: int) -> None:
        """Forgets what was written, or is to be, for later steps than `step`, which a resumed run writes again."""
        for writer, waiting in zip(self._writers, self._waiting):
            told = bool(waiting)
            kept = [(at, what) for at, what in waiting if at <= step]
            waiting.clear()
            waiting.extend([*kept, (step, functools.partial(writer.truncate_after, step))])
            self._do(writer, waiting, told)

    def _do(self, writer: Any, waiting: collections.deque, told: bool) -> None:
        if (why := _done(waiting)) and not told:
            self._warn(f"{type(writer).__name__}: {why}; metrics are kept until they can be written")

    def close(self) -> None:
        for writer, waiting in zip(self._writers, self._waiting):
            _done(waiting)
            writer.close()


def _done(waiting: collections.deque) -> str:
    """Does what waits, as far as that goes; why not all, or nothing."""
    try:
        while waiting:
            waiting[0][1]()
            waiting.popleft()
    except OSError as error:
        return error.strerror or str(error)
    return ""
