"""How far a long piece of work on data is: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

LINES = 10  # that a log gets


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function to be called after each of `total` pieces; it writes to standard error.

    with progress("indexing", len(files)) as advance:
        for file in files:
            ...
            advance()
    """
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _lines(what: str, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if total > 1 and (done == total or done * LINES // total > (done - 1) * LINES // total):
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return advance
