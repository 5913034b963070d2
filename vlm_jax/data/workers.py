"""Rows prepared by other processes, in memory that they share with this one, and joined to batches in order."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, util

import numpy as np

from vlm_jax.data.stream import CHUNK, chunked
from vlm_jax.errors import Fault, UserError

Load = Callable[[int, np.ndarray], tuple[dict[str, np.ndarray], list]]
Spec = Mapping[str, tuple[tuple[int, ...], str]]

# What stops a run is sent to all of its processes: this one decides when the workers end.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What has a worker print the stacks of its threads.
STACKS = signal.SIGUSR2
# Seconds that a worker has to finish what it is at, once it is closed.
PATIENCE = 5.0


class WorkerStream:
    """`load(step, rows)` of steps 0, 1, ..., as `stream` gives them, prepared by `workers` processes.

    They are spawned, so that they inherit nothing of jax, and import no more than what `load` needs. Batches lie in
    memory without a name (an unlinked file that is passed on by its descriptor): there is nothing to be left over,
    however this process ends. When it does, the workers' pipes close, and so they end too.
    """

    def __init__(
        self, load: Load, *, spec: Spec, rows: np.ndarray, workers: int, threads: int, prefetch: int, window: int = 1
    ):
        """Starts the workers.

        Args:
          load: rows of a step, and notes on them; it is pickled.
          spec: shape of one row and type of each array that it gives.
          threads: of each worker; 0 is one.
          prefetch: steps prepared ahead; 0 begins a step when it is asked for.
          window: rows that are made together; no two workers make one.

        Raises: UserError where `load` does not pickle.
        """
        places = chunked(rows, min(CHUNK, -(-len(rows) // workers)), window)
        self._chunks = len(places)
        self._prefetch, self._slots = prefetch, max(1, prefetch)
        context = multiprocessing.get_context("spawn")
        memory = [context.RawArray(ctypes.c_uint8, _bytes(spec, len(rows))) for _ in range(self._slots)]
        self._arrays = [_arrays(shared, spec, len(rows)) for shared in memory]
        self._step = self._sent = 0
        self._parts: dict[int, dict[int, tuple]] = {}  # what has come of the steps that were sent
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[connection.Connection] = []
        self._stop = util.Finalize(self, _stop, args=(self._processes, self._pipes), exitpriority=10)
        try:
            with _signals_held():
                for i in range(workers):
                    ours, theirs = context.Pipe()
                    self._pipes.append(ours)
                    arguments = (theirs, load, memory, spec, rows, places, max(1, threads))
                    process = context.Process(target=_work, args=arguments, name=f"data worker {i}", daemon=True)
                    with theirs:
                        process.start()
                    self._processes.append(process)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            self.close()
            raise UserError(f"the data cannot be sent to worker processes ({error}); set workers=0.") from error
        self._send(self._prefetch)

    def __iter__(self) -> WorkerStream:
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], list]:
        if not self._stop.still_active():
            raise ValueError("the stream is closed")
        self._send(self._step + self._slots)
        parts = self._parts[self._step]
        while len(parts) < self._chunks:
            self._receive()
        del self._parts[self._step]
        notes = []
        for _, (part, error) in sorted(parts.items()):
            if error is not None:
                raise error
            notes += part
        batch = {name: array.copy() for name, array in self._arrays[self._step % self._slots].items()}
        self._step += 1
        self._send(self._step + self._prefetch)
        return batch, notes

    def close(self) -> None:
        """Ends the workers, and waits until they are gone; whatever they have prepared is dropped."""
        self._stop()

    def _send(self, until: int) -> None:
        """Hands out the parts of the steps before `until`."""
        for step in range(self._sent, until):
            self._parts[step] = {}
            for chunk in range(self._chunks):
                worker = (step * self._chunks + chunk) % len(self._pipes)
                try:
                    self._pipes[worker].send((step, chunk))
                except OSError as error:
                    raise self._lost(worker) from error
        self._sent = max(self._sent, until)

    def _receive(self) -> None:
        """Takes what workers have told."""
        for pipe in connection.wait(self._pipes):
            try:
                step, chunk, notes, error = pipe.recv()
            except (EOFError, OSError) as broken:
                raise self._lost(self._pipes.index(pipe)) from broken
            self._parts[step][chunk] = (notes, error)

    def _lost(self, worker: int) -> UserError:
        process = self._processes[worker]
        process.join(PATIENCE)
        code = process.exitcode
        if code is None or code >= 0:
            how = (
                f"ended with code {code}, what it said stands above; a script that has workers begins them "
                "under `if __name__ == '__main__':`"
            )
        else:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
        error = Fault if code is not None and code < 0 else UserError
        return error(f"worker process {worker} of the data {how}. The run can be started again where it was saved.")


def _work(pipe, load: Load, memory: list, spec: Spec, rows: np.ndarray, places: list, threads: int) -> None:
    """What a worker does: parts of steps as they are asked for, until the pipe is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(STACKS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*SIGNALS, STACKS))
    slots = [_arrays(shared, spec, len(rows)) for shared in memory]
    lock = threading.Lock()

    def do(step: int, chunk: int) -> None:
        notes, failure = [], None
        try:
            batch, notes = load(step, rows[places[chunk]])
            for name, array in batch.items():
                slots[step % len(slots)][name][places[chunk]] = array
        except BaseException as error:
            failure = _portable(error)
        with lock, contextlib.suppress(OSError):  # nobody listens any more: the end comes by the pipe
            pipe.send((step, chunk, notes, failure))

    with ThreadPoolExecutor(threads) as pool:
        while True:
            try:
                task = pipe.recv()
            except (EOFError, OSError):
                _end_within(PATIENCE)  # a read that hangs must not leave a process behind
                pool.shutdown(cancel_futures=True)
                return
            pool.submit(do, *task)


def _end_within(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _portable(error: BaseException) -> BaseException:
    """The error as it can be sent, with where it happened as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        portable = pickle.loads(pickle.dumps(error))
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note(f"In a worker process:\n{trace}")
    return portable


def _stop(processes: list[multiprocessing.Process], pipes: list[connection.Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():  # it reads from something that does not answer
            process.kill()
            process.join()
        process.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keeps signals back, also from processes started meanwhile: until they know what to do with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, STACKS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _bytes(spec: Spec, count: int) -> int:
    return sum(_aligned(count * _row_bytes(*entry)) for entry in spec.values())


def _arrays(memory, spec: Spec, count: int) -> dict[str, np.ndarray]:
    """The arrays of `count` rows that lie in `memory`."""
    arrays, at = {}, 0
    for name, (shape, dtype) in spec.items():
        values = np.frombuffer(memory, dtype, count * math.prod(shape), at)
        arrays[name] = values.reshape(count, *shape)
        at += _aligned(count * _row_bytes(shape, dtype))
    return arrays


def _row_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
