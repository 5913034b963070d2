"""Numbers and durations as people read them, the same on the terminal and on the page."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Two units of a duration in seconds: `42s`, `1m42s`, `3h07m`, `12d04h`; `?` where it is not known."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def rate(value: float) -> str:
    """A count a second: whole from ten up, two digits below."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def number(value: float, digits: int = 4) -> str:
    """A value at `digits` significant digits: `0.9712`, `1,331`, `1e-3`; whole numbers are never rounded."""
    if not math.isfinite(value):
        return str(value).replace("inf", "∞").replace("nan", "NaN")
    if abs(value) < 1e15 and (value == int(value) or abs(value) >= 10 ** (digits - 1)):
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
