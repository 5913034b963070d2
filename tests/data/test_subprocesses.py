"""Processes that call functions: their results, their errors, their end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vlm_jax.data.subprocesses import subprocesses
from vlm_jax.errors import UserError


def square(values):
    print("something that a library prints")
    return os.getpid(), values**2


def fail(what):
    raise UserError(f"{what} is broken")


def test_results_come_from_other_processes():
    with subprocesses(2, square) as call, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(call, [np.arange(k) for k in range(20)]))
    assert all((values == np.arange(k) ** 2).all() for k, (_, values) in enumerate(found))
    assert os.getpid() not in {pid for pid, _ in found}


def test_errors_are_raised_here_and_the_process_goes_on():
    with subprocesses(1, fail) as call:
        for k in range(2):
            with pytest.raises(UserError, match=f"{k} is broken"):
                call(k)


def test_a_process_that_ends_is_told():
    with subprocesses(1, os._exit) as call:
        with pytest.raises(RuntimeError, match="ended with code 3"):
            call(3)


def test_none_is_left_over():
    with subprocesses(2, square) as call:
        pids = {call(np.arange(2))[0] for _ in range(2)}
    with pytest.raises(KeyboardInterrupt):
        with subprocesses(1, square) as call:
            pids.add(call(np.arange(2))[0])
            raise KeyboardInterrupt
    assert len(pids) >= 2 and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_an_interruption_while_one_is_busy():
    started = threading.Event()

    def wait(call):
        started.set()
        with pytest.raises(RuntimeError, match="ended with code"):
            call(60)

    with subprocesses(1, time.sleep) as call:
        thread = threading.Thread(target=wait, args=(call,))
        thread.start()
        started.wait(30)
    thread.join(30)
    assert not thread.is_alive()


def test_a_program_needs_no_guard(tmp_path):
    """Spawned workers would run it again."""
    program = tmp_path / "program.py"
    program.write_text(
        "import math\nfrom vlm_jax.data.subprocesses import subprocesses\n"
        "with subprocesses(2, math.sqrt) as call:\n    print(call(16), call(25))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "4.0 5.0\n", done.stderr
