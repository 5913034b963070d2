"""Progress on a terminal, in a file, and where nobody listens any more."""

from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest

from vlm_jax.report.progress import Progress

METRICS = {"train/loss": 3.2141, "train/learning_rate": 1e-3, "train/examples_per_s": 1331.2, "train/eta_s": 102.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_plain_lines_at_log_times():
    out = io.StringIO()
    with Progress(2800, stream=out) as progress:
        progress.update(0)
        progress.update(200, METRICS)
        progress.update(201)
        progress.note("saved [step 200]")
        progress.update(400, {"loss": math.nan})
    assert out.getvalue().splitlines() == [
        "step 200/2800  loss 3.214  lr 1.0e-03  1331 examples/s  eta 1m42s",
        "saved [step 200]",
        "step 400/2800  loss nan",
    ]
    assert "\x1b" not in out.getvalue()


def test_a_bar_on_a_terminal(terminal):
    with Progress(10, start=2, stream=terminal) as progress:
        progress.update(3, METRICS)
        progress.note("saved [bold]step 3[/bold]")
        progress.update(10)
    text = terminal.getvalue()
    assert "\x1b[" in text and "━" in text
    assert "step 3/10" in text and "loss 3.214" in text and "1331 examples/s" in text and "eta 1m42s" in text
    assert "saved [bold]step 3[/bold]" in text, "a note is shown as it is"
    assert "step 10/10" in text, "the last step is drawn when the bar stops"


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Progress(10, stream=terminal) as progress:
        progress.update(3, METRICS)
    assert terminal.getvalue() == "step 3/10  loss 3.214  lr 1.0e-03  1331 examples/s  eta 1m42s\n"


def test_quiet_shows_nothing(capsys):
    with Progress(10, quiet=True) as progress:
        progress.update(1, METRICS)
        progress.note("hello")
    assert capsys.readouterr() == ("", "")


def test_what_the_terminal_cannot_show_is_replaced():
    raw = io.BytesIO()
    with Progress(10, stream=io.TextIOWrapper(raw, encoding="ascii")) as progress:
        progress.note("ein größeres Bild")
    assert raw.getvalue() == b"ein gr??eres Bild\n"


@pytest.mark.parametrize("base", [io.StringIO, Terminal])
@pytest.mark.parametrize("error", [BrokenPipeError, OSError(5, "Input/output error"), ValueError("closed file")])
def test_a_lost_stream_never_stops_the_run(terminal, base, error):
    class Lost(base):
        def write(self, text):
            raise error

        flush = lambda self: self.write("")

    with Progress(10, stream=Lost()) as progress:
        progress.update(1, METRICS)
        progress.note("hello")
        progress.update(2, METRICS)


def test_a_closed_pipe_leaves_no_trace():
    code = (
        "from vlm_jax.report import Progress\n"
        "with Progress(100) as progress:\n"
        "    for step in range(20000): progress.update(step, {'loss': 1.0})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"step 0/100  loss 1.000\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


def test_no_standard_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with Progress(10) as progress:
        progress.update(1, METRICS)
