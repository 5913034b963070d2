"""Passwords and signatures in URLs: what is printed, reported or exported has `***` in their place."""

from __future__ import annotations

import re
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
