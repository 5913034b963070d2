"""One process by itself: what `Link` does for many, without anybody to talk to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from vlm_jax.processes.leave import leave

T = TypeVar("T")


class Alone:
    """The only process of a run."""

    index = 0
    count = 1

    def say(self, line: str) -> None:
        print(line, flush=True)

    def gather(self, value: T) -> list[T]:
        return [value]

    def in_turn(self, make: Callable[[], T]) -> T:
        return make()

    def stops(self, signal: int | None) -> int | None:
        return signal

    def end(self, line: str, code: int) -> NoReturn:
        """Ends the process at once, from whichever thread."""
        leave(line, code)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        yield
