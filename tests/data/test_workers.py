from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.numbered import PLAIN, SIZE, TEXT, VARIED, Numbered, png, same, take, told
from vlm_jax.data import workers as workers_module
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.order import permutation
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.errors import UserError

BATCH = 24


def mixed(**options) -> Pipeline:
    """Two sources, one of which begins new epochs all the time, with records that cannot be read."""
    damaged = ((3, b"junk"), (7, b""), (11, "\udcff"))
    parts = dict(
        few=Part(Numbered("few", 13, damaged=damaged), weight=1, image=PLAIN, caption="first"),
        many=Part(Numbered("many", 1000, failing=((5, "torn"),)), weight=2.5),
    )
    return Pipeline(Mixture(parts), image=VARIED, text=TEXT, **{"threads": 0, **options})


def single(source=None, **options) -> Pipeline:
    return Pipeline(Numbered() if source is None else source, image=VARIED, text=TEXT, **{"threads": 1, **options})


@pytest.mark.parametrize("workers, threads, prefetch", [(1, 1, 0), (2, 1, 1), (3, 2, 4)])
def test_batches_are_those_of_this_process(workers, threads, prefetch):
    kwargs = dict(batch_size=70, rows=np.arange(70)[::-1])
    expected = take(single(), 5, **kwargs)
    got = take(single(workers=workers, threads=threads, prefetch=prefetch), 5, **kwargs)
    same(got[0], expected[0])
    assert got[1] == expected[1]


def test_sources_of_ours_go_to_workers(tmp_path):
    table = pa.table({"image": [png(i) for i in range(20)], "text": [f"drawn one {i}" for i in range(20)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    parts = dict(
        drawn=Part(Parquet(str(tmp_path / "a.parquet"), text_column="text")),
        shapes=Part(Shapes(size=100, image_size=SIZE), templates=("a {}",)),
    )
    make = lambda workers: Pipeline(Mixture(parts), image=PLAIN, text=TEXT, threads=1, workers=workers)
    same(take(make(1), 4)[0], take(make(0), 4)[0])


def test_a_batch_stays_what_it_was():
    batches = single(workers=1, prefetch=1).batches(seed=0, batch_size=8, rows=np.arange(8))
    first = next(batches)
    copy = {name: array.copy() for name, array in first.items()}
    for _ in range(5):
        next(batches)
    batches.close()
    same(first, copy)


def test_workers_are_processes_without_jax():
    order = permutation(50, seed=0, name="numbers", epoch=0)(np.arange(16)).tolist()
    source = Numbered(failing=tuple((record, "import") for record in order[::2]))
    _, state = take(single(source, workers=2), 2)
    why = {why for _, why in state["unreadable_first"]}
    assert all(text.startswith("jax False, process ") for text in why)
    assert str(os.getpid()) not in " ".join(why)


def children() -> set[int]:
    """Processes that this one has started and not yet waited for; Python's own tracker is none of ours."""
    found = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if parent == os.getpid() and b"resource_tracker" not in command:
            found.add(int(stat.parent.name))
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def named_memory(pid: int) -> list[str]:
    """What a process has in memory of files in /dev/shm that have a name there."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in maps if "/dev/shm/" in line and not line.endswith("(deleted)")]


def test_close_leaves_nothing():
    take(single(workers=1), 1)  # from the first time on Python keeps a tracker of shared memory
    before = children(), open_files(), named_memory(os.getpid())
    for count in (0, 2):
        batches = single(workers=2).batches(seed=0, batch_size=8, rows=np.arange(8))
        for _ in range(count):
            next(batches)
        workers = children() - before[0]
        assert len(workers) == 2 and not any(named_memory(pid) for pid in workers)
        assert named_memory(os.getpid()) == before[2]
        batches.close()
        batches.close()
        with pytest.raises(ValueError, match="closed"):
            next(batches)
        del batches
    assert (children(), open_files(), named_memory(os.getpid())) == before


def test_what_is_forgotten_is_closed():
    before = children()
    batches = single(workers=1).batches(seed=0, batch_size=8, rows=np.arange(8))
    next(batches)
    del batches
    assert children() == before


def first_records(count: int) -> list[int]:
    return permutation(50, seed=0, name="numbers", epoch=0)(np.arange(count)).tolist()


def test_an_error_of_the_disk_arrives_as_its_line_when_its_batch_is_due():
    bad = first_records(21)[-1]
    before = children()
    pipeline = single(Numbered(failing=((bad, "disk"),)), workers=2)
    batches = pipeline.batches(seed=0, batch_size=8, rows=np.arange(8))
    for _ in range(2):
        next(batches)
    state = batches.state()
    with pytest.raises(
        UserError, match=rf"^source 'numbers': record {bad} cannot be read after 3 tries \(no such disk"
    ):
        next(batches)
    assert batches.state() == state and children() == before
    rest, _ = take(single(), 2, state=state)
    same(rest, {name: array[16:] for name, array in take(single(), 4)[0].items()})


def test_a_bug_arrives_with_its_trace():
    source = Numbered(failing=((first_records(3)[-1], "bug"),))
    with pytest.raises(ZeroDivisionError, match="a bug") as error:
        take(single(source, workers=1), 1)
    assert "in fail" in error.value.__notes__[0]


def test_a_killed_worker_is_reported():
    before = children()
    with pytest.raises(UserError, match=r"worker process [01] of the data was killed by SIGKILL, as the system does"):
        take(single(Numbered(failing=((first_records(12)[-1], "killed"),)), workers=2), 3)
    assert children() == before


def test_a_worker_killed_while_it_waits_is_reported():
    before = children()
    batches = single(workers=1).batches(seed=0, batch_size=8, rows=np.arange(8))
    next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match="killed by SIGKILL"):
        for _ in range(5):
            next(batches)
    assert children() == before


def test_workers_leave_signals_to_this_process():
    before = children()
    batches = single(workers=2).batches(seed=0, batch_size=8, rows=np.arange(8))
    for worker in children() - before:  # from their first moment on
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    try:
        same(next(batches), take(single(), 1)[0])
    finally:
        batches.close()


class Deaf(Numbered):
    """A source whose reads never end."""

    def __getitem__(self, index):
        time.sleep(1000)


def test_a_worker_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(workers_module, "PATIENCE", 0.2)
    before = children()
    batches = single(Deaf(), workers=1).batches(seed=0, batch_size=8, rows=np.arange(8))
    batches.close()
    assert children() == before


def test_data_that_do_not_pickle_are_refused():
    class Local(Numbered):
        pass

    before = children()
    with pytest.raises(UserError, match=r"cannot be sent to worker processes \(.*Local.*\); set workers=0"):
        take(single(Local(), workers=2), 1)
    assert children() == before


def script(folder: pathlib.Path, body: str) -> list[str]:
    path = folder / "program.py"
    head = "import sys\nsys.path.insert(0, {!r})\nfrom numbered import *\nfrom vlm_jax.data.pipeline import Pipeline\n"
    path.write_text(head.format(str(pathlib.Path(__file__).parent)) + textwrap.dedent(body))
    return [sys.executable, str(path)]


BEGIN = """
    def begin():
        pipeline = Pipeline(Numbered(), image=PLAIN, text=TEXT, workers=2, threads=1)
        return pipeline.batches(seed=0, batch_size=8, rows=np.arange(8))
"""


def test_a_program_that_forgets_to_close_ends(tmp_path):
    """Beside jax, which has started before; nothing but what the program says is printed."""
    body = """
    if __name__ == "__main__":
        import jax
        total = jax.numpy.zeros(())
        batches = begin()
        for _ in range(3):
            total += next(batches)["image"].sum()
        print(int(total))
    """
    command = script(tmp_path, BEGIN + body)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "XLA_FLAGS": ""})
    expected, _ = take(Pipeline(Numbered(), image=PLAIN, text=TEXT, threads=0), 3)
    assert (done.returncode, done.stdout) == (0, f"{expected['image'].astype(int).sum()}\n")
    assert "Error" not in done.stderr and "leaked" not in done.stderr


def test_a_script_without_a_guard_is_told(tmp_path):
    done = subprocess.run(script(tmp_path, BEGIN + "\n    next(begin())"), capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "a script that has workers begins them under `if __name__ == '__main__':`" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_program(tmp_path, number):
    body = """
    if __name__ == "__main__":
        import multiprocessing, time
        batches = begin()
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        while True:
            next(batches)
    """
    program = subprocess.Popen(
        script(tmp_path, BEGIN + body),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell starts with `&`
    )
    with program:
        try:
            workers = [int(pid) for pid in program.stdout.readline().split()]
            assert len(workers) == 2
            if number == signal.SIGINT:  # as a terminal does: to all of them
                os.killpg(program.pid, number)
            else:
                program.kill()
            said = program.communicate(timeout=60)[1]
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    assert program.returncode == -number
    if number == signal.SIGINT:
        assert said.count("KeyboardInterrupt") == 1
    deadline = time.monotonic() + 60
    while alive := [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"{alive} live on"
        time.sleep(0.05)


def resident() -> int:
    """Bytes in memory of this process and its workers."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    pages = [int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def memory_stays(examples: int):
    pipeline = mixed(workers=2, threads=1)
    batches = pipeline.batches(seed=0, batch_size=250, rows=np.arange(250))
    try:
        for _ in range(20):
            next(batches)
        before = resident()
        for _ in range(examples // 250):
            next(batches)
        assert resident() - before < 16e6
    finally:
        batches.close()


def test_memory_stays_where_it_is():
    memory_stays(5_000)


@pytest.mark.full
def test_memory_stays_where_it_is_over_a_hundred_thousand_examples():
    memory_stays(100_000)


def test_rows_of_both_sources_are_told_apart():
    batch, state = take(mixed(workers=1), 3, batch_size=BATCH)
    names = [name for name, _ in told(batch)]
    assert state["rows"] == {"few": names.count("few"), "many": names.count("many")}
