"""Processes that call a function for this one: for work in Python that threads would do one after the other.

They are plain interpreters that know nothing of the program that started them, so that it needs no
`if __name__ == "__main__":`, and they inherit neither its threads nor its locks.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

PROGRAM = "from vlm_jax.data.subprocesses import serve; serve()"


@contextlib.contextmanager
def subprocesses(count: int, function: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    """Gives `function`, called in one of `count` processes that are free; to be called from as many threads.

    Function, arguments and results must pickle. What the function raises is raised here.

    Raises: RuntimeError, by the call, where a process has ended before it answered.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    free: queue.SimpleQueue = queue.SimpleQueue()
    started = []
    try:
        for _ in range(count):
            args = [sys.executable, "-c", PROGRAM]
            started.append(subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env))
            free.put(started[-1])

        def call(argument: Any) -> Any:
            process = free.get()
            try:
                pickle.dump((function, argument), process.stdin)
                process.stdin.flush()
                result, error = pickle.load(process.stdout)
            except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):  # ValueError: closed meanwhile
                raise RuntimeError(f"a subprocess ended with code {process.wait()}") from None
            finally:
                free.put(process)
            if error is not None:
                raise error
            return result

        yield call
    finally:
        for process in started:
            process.kill()
            process.communicate()


def serve() -> None:
    """The program of a subprocess: answers until nobody asks."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not stand between the answers
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            function, argument = pickle.load(asked)
            try:
                answer = (function(argument), None)
            except Exception as error:
                answer = (None, error)
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
