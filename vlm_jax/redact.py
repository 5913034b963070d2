"""Passwords and signatures in URLs: what is printed, reported or exported has `***` in their place."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import traceback
from typing import Any

HIDDEN = "***"
# Up to the last "@" before the path: a password may hold one.
_PASSWORD = re.compile(r"(?<=://)[^/\s'\":]*:[^/\s'\"]*@|(?<=https://)[^/\s'\"]+@|(?<=http://)[^/\s'\"]+@")
_QUERY = re.compile(r"([?&][\w.~%\[\]-]+=)[^&#\s'\"]+")


def hidden(text: str) -> str:
    """The text without what is secret in its URLs: `user:password@`, and the values of a query.

    >>> hidden("no https://me:pw@host/a.tar?X-Goog-Signature=12ab&part=1 there")
    'no https://***@host/a.tar?X-Goog-Signature=***&part=*** there'
    """
    return _QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(f"{HIDDEN}@", text))


def hidden_in(value: Any) -> Any:
    """The same in every string of nested dicts, lists and tuples."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, dict):
        return {key: hidden_in(inner) for key, inner in value.items()}
    return type(value)(map(hidden_in, value)) if isinstance(value, (list, tuple)) else value


def tell(text: str) -> None:
    """Prints to standard error, without what is secret. Nobody may be there to read it, as where `| tee` has died."""
    with contextlib.suppress(OSError, ValueError):
        print(hidden(text), file=sys.stderr, flush=True)


def tell_uncaught() -> None:
    """From now on the trace of an error that ends the program, or a thread of it, is told in that way."""
    told = lambda *error: tell("".join(traceback.format_exception(*error)).rstrip())
    sys.excepthook = told
    threading.excepthook = lambda args: args.exc_type is SystemExit or told(*args[:3])
