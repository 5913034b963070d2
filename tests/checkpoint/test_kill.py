"""kill -9 while a save is under way: the last whole step is there, and saving goes on."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vlm_jax.checkpoint import Store

WRITER = """
import sys
import numpy as np
import test_kill
from vlm_jax.checkpoint import Store

store = Store(sys.argv[1], keep=3)
first = int(sys.argv[2])
for step in range(first, first + 10_000):
    store.save(step, test_kill.items_of(step), {})
    print(step, flush=True)
"""


def items_of(step: int) -> dict:
    """Megabytes that nothing compresses, so that writing them takes a while."""
    rng = np.random.default_rng(step)
    return {"params": {f"x{i}": rng.normal(size=(256, 1024)).astype(np.float32) for i in range(4)}}


def abstract() -> dict:
    import jax

    return jax.eval_shape(lambda: items_of(0))


def restored_step(workdir: Path) -> int:
    """The last step, after making sure that it is whole and was found without a warning."""
    found = Store(workdir, warn=pytest.fail).restore_latest(abstract())
    if found is None:
        return 0
    step, items, _ = found
    for name, wanted in items_of(step)["params"].items():
        np.testing.assert_array_equal(items["params"][name], wanted)
    return step


def kill_and_go_on(workdir: Path, kills: int, seed: int) -> None:
    rng, step = random.Random(seed), 0
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(workdir), str(step + 1)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        try:
            begun = [int(writer.stdout.readline()) for _ in range(rng.randint(1, 4))]
            time.sleep(rng.uniform(0, 0.1))
        finally:
            writer.send_signal(signal.SIGKILL)
            rest = writer.communicate()[0].split()
        begun += map(int, rest)
        step = restored_step(workdir)
        assert begun[-1] - 1 <= step <= begun[-1] + 1  # one save at most is under way
    with Store(workdir) as store:
        store.save(step + 1, items_of(step + 1), {})
    assert restored_step(workdir) == step + 1
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left <= {str(s) for s in range(step + 2)}  # what killed saves left is gone


def test_killed_while_saving(tmp_path):
    kill_and_go_on(tmp_path, kills=2, seed=0)


@pytest.mark.full
def test_killed_while_saving_many_times(tmp_path):
    kill_and_go_on(tmp_path, kills=30, seed=1)
