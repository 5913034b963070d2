from __future__ import annotations

import io
import sys

from vlm_jax.data.progress import progress


def run(total: int) -> None:
    with progress("counting", total) as advance:
        for _ in range(total):
            advance()


def test_a_log_gets_a_few_lines(capsys):
    run(250)
    assert capsys.readouterr().err.splitlines() == [f"counting: {25 * k} of 250" for k in range(1, 11)]
    run(3)
    assert capsys.readouterr().err.splitlines() == [f"counting: {k} of 3" for k in (1, 2, 3)]
    run(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run(250)
    assert "counting" in terminal.getvalue() and "250/250" in terminal.getvalue()
