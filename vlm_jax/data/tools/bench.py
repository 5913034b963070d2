"""`bench`: how fast a source gives training batches, for numbers of workers and threads, and whether a step waits."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Batches, Pipeline
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

HEADER = "workers threads   images/s  images/s/core  wait ms: mean     p99     max  waiting    MB  MB more"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prepare shuffled training batches as a run does (read, decode, resize, captions to bytes) for each number of "
        "workers and of threads. A core is a second of CPU time, so that other programs disturb it little."
    )
    parser.add_argument("--workers", metavar="N,N", default="0", help="processes (default: 0, none but this one)")
    parser.add_argument("--threads", metavar="N,N", default="4", help="threads of each of them (default: 4)")
    parser.add_argument("--batch_size", type=int, metavar="N", default=256)
    parser.add_argument("--size", type=int, metavar="PIXELS", default=224, help="side of the images (default: 224)")
    parser.add_argument("--resize", metavar="HOW", default="squash", help="squash | crop | pad")
    parser.add_argument("--decoder", metavar="NAME", default="pillow", help="pillow | simplejpeg | full")
    parser.add_argument("--resizer", metavar="NAME", default="pillow", help="pillow | simd")
    parser.add_argument("--prefetch", type=int, metavar="N", default=2, help="batches ahead (default: 2)")
    parser.add_argument("--seconds", type=float, metavar="S", default=10, help="of each measurement (default: 10)")
    parser.add_argument(
        "--step_ms", type=float, metavar="MS", default=0, help="a training step of so long between batches"
    )


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    _numbers("workers", flags.workers)
    _numbers("threads", flags.threads)
    if flags.batch_size < 1 or flags.seconds <= 0 or flags.step_ms < 0:
        raise UserError("wanted are --batch_size of at least 1, --seconds of more than 0 and --step_ms of at least 0.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """A line for each number of workers and threads, as soon as it is measured."""
    image = ImageTransform(flags.size, flags.resize, decoder=flags.decoder, resizer=flags.resizer)
    yield HEADER
    for workers, threads in itertools.product(_numbers("workers", flags.workers), _numbers("threads", flags.threads)):
        pipeline = Pipeline(source, image, Text(), workers=workers, threads=threads, prefetch=flags.prefetch)
        batches = pipeline.batches(seed=0, batch_size=flags.batch_size, rows=np.arange(flags.batch_size))
        try:
            found = measure(batches, flags.batch_size, flags.prefetch + 1, flags.seconds, flags.step_ms / 1e3)
        finally:
            batches.close()
        yield f"{workers:>7} {threads:>7} {found.line()}"
    yield f"{source.name}, {len(source):,} records, batches of {flags.batch_size}, {os.cpu_count()} cores here"


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a measurement found.

    Attributes:
      images: prepared for batches that were given out.
      seconds: of wall time.
      cpu_seconds: of this process and its workers; None where the system does not tell.
      waits: seconds for each batch.
      megabytes: that this process and its workers hold at the end, and how many more than at the beginning; None where
        the system does not tell.
    """

    images: int
    seconds: float
    cpu_seconds: float | None
    waits: np.ndarray
    megabytes: tuple[float, float] | None

    def line(self) -> str:
        """The columns of `HEADER` after workers and threads."""
        per_core = f"{self.images / self.cpu_seconds:.0f}" if self.cpu_seconds else "-"
        mean, p99, most = (
            1e3 * value for value in (self.waits.mean(), np.percentile(self.waits, 99), self.waits.max())
        )
        held, more = (f"{value:.0f}" for value in self.megabytes) if self.megabytes else "--"
        waiting = self.waits.sum() / self.seconds
        return (
            f"{self.images / self.seconds:>10,.0f} {per_core:>14} {mean:>14.1f} {p99:>7.1f} {most:>7.1f} "
            f"{waiting:>8.0%} {held:>5} {more:>8}"
        )


def measure(batches: Batches, batch_size: int, warm_up: int, seconds: float, step_s: float) -> Speed:
    """Takes batches for some seconds, after `warm_up` of them, sleeping `step_s` after each as a device that works."""
    for _ in range(warm_up):
        next(batches)
    waits, cpu, memory, start = [], cpu_seconds(), megabytes(), time.perf_counter()
    while not waits or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - before)
        time.sleep(step_s)
    took = time.perf_counter() - start
    after, held = cpu_seconds(), megabytes()
    return Speed(
        images=batch_size * len(waits),
        seconds=took,
        cpu_seconds=None if cpu is None or after is None else after - cpu,
        waits=np.array(waits),
        megabytes=None if memory is None or held is None else (held, held - memory),
    )


def cpu_seconds() -> float | None:
    """CPU time of this process and of its workers; None where there is no /proc to ask about them."""
    return _of_workers(_cpu_of, time.process_time())


def megabytes() -> float | None:
    """Memory of this process and of its workers, what they share counted once; None where there is no /proc."""
    own = _held_by(os.getpid())
    return None if own is None else _of_workers(_held_by, own)


def _of_workers(ask: Callable[[int], float | None], own: float) -> float | None:
    values = [ask(worker.pid) for worker in multiprocessing.active_children() if worker.pid]
    return None if None in values else own + sum(values)


def _cpu_of(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)


def _held_by(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), None)


def _numbers(name: str, text: str) -> list[int]:
    """The numbers of "0,2,4". Raises: UserError."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise UserError(f"--{name}={text}: wanted are numbers of at least 0, as 0,2,4.")
    return numbers
