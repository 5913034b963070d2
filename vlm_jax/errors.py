"""Errors that are the user's to mend: one line that names what is wrong and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from vlm_jax.redact import hidden


class UserError(Exception):
    """A mistake in a config, a file or a flag. `main` prints its one line and exits with `code`, which is 2."""

    code = 2

    def __init__(self, *args):
        super().__init__(*(hidden(arg) if isinstance(arg, str) else arg for arg in args))


class Fault(UserError):
    """Nobody's mistake: a process that was killed, a read that hangs. It exits with 1, and launchers start it again."""

    code = 1


def closest(name: str, choices: Iterable[str], *, most: int = 3) -> str:
    """Names the choices nearest to `name`, as the end of an error line.

    >>> closest("dept", ["depth", "width"])
    "did you mean 'depth'?"
    """
    choices = sorted(set(choices))
    near = difflib.get_close_matches(name, choices, n=most, cutoff=0.6)
    if not near:  # the last part of a dotted name is where the misspelling usually is
        tails = {choice.rsplit(".", 1)[-1]: choice for choice in choices}
        near = [tails[t] for t in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=most, cutoff=0.6)]
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    if not choices:
        return "there is nothing to choose from."
    shown = ", ".join(choices[:20]) + (", ..." if len(choices) > 20 else "")
    return f"valid choices: {shown}."
