"""Last words: what can still be said is said, and the process ends all the same."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from vlm_jax.redact import tell

# Seconds for last words; a pipe that nobody reads would take them for ever.
BRIEFLY = 5.0


def briefly(say: Callable[[], None]) -> None:
    """Calls `say` in a thread of its own, and waits `BRIEFLY` for it."""
    words = threading.Thread(target=say, name="last words", daemon=True)
    words.start()
    words.join(BRIEFLY)


def leave(line: str | None, code: int) -> NoReturn:
    """Ends the process at once, from whichever thread, whatever the others do and wherever its output goes."""

    def say() -> None:
        if line is not None:
            tell(f"error: {line}")
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()

    try:
        briefly(say)
    finally:
        os._exit(code)
