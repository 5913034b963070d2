"""Records that cannot be decoded, parsed or read, and what becomes of the run."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest

from tests.data.counting import Source, make, records
from tests.data.numbered import png, same, take
from vlm_jax.data import reader
from vlm_jax.data import rows as rows_module
from vlm_jax.data.order import permutation
from vlm_jax.errors import UserError


def test_unreadable_records_are_replaced_by_the_next_and_shift_nothing():
    whole, _ = take(make(), 13)  # 104 rows, two epochs and a bit
    order = [permutation(50, seed=0, name="numbers", epoch=e)(np.arange(50)).tolist() for e in range(3)]
    bad = {order[0][0], order[0][7], order[0][8], order[0][49], 13}
    source = Source(broken=frozenset(list(bad)[::2]), torn=frozenset(list(bad)[1::2]))
    batch, state = take(make(source, threads=3), 13)
    replaced = 0
    for g, record in enumerate(records(batch)):
        epoch, position = divmod(g, 50)
        own, row = order[epoch][position], {name: array[g] for name, array in batch.items()}
        if own not in bad:
            same(row, {name: array[g] for name, array in whole.items()})
            continue
        replaced += 1
        following = (order[epoch][(position + k) % 50] for k in range(50))
        assert record == next(r for r in following if r not in bad)
    assert replaced == state["unreadable"] > 10


def test_an_unreadable_record_keeps_no_batch_in_memory():
    batches = make(Source(broken=frozenset(range(0, 50, 5)))).batches(seed=0, batch_size=50, rows=np.arange(50))
    gc.collect()
    gc.disable()
    try:
        batch = next(batches)
        given = weakref.ref(batch["image"])
        del batch
        next(batches)
        assert given() is None
    finally:
        gc.enable()
        batches.close()


def test_unreadable_records_are_counted_once_over_a_resume():
    source = Source(broken=frozenset(range(0, 50, 5)), torn=frozenset({1}))
    expected, state = take(make(source), 9)
    for steps in range(1, 9):
        head, middle = take(make(source, threads=2), steps)
        tail, end = take(make(source, threads=2), 9 - steps, state=json.loads(json.dumps(middle)))
        same({name: np.concatenate([head[name], tail[name]]) for name in head}, expected)
        assert end == state
    batches = make(source).batches(seed=0, batch_size=8, rows=np.arange(8), state=state)
    assert batches.unreadable == state["unreadable"]
    assert len(batches.unreadable_first) == 10 and ("key1", "torn") in batches.unreadable_first
    batches.close()


def test_counts_of_processes_add_up():
    source = Source(broken=frozenset(range(0, 50, 5)))
    whole = take(make(source), 9)[1]["unreadable"]
    parts = [
        take(make(source), 9, rows=rows)[1]["unreadable"] for rows in (np.array([0, 5]), np.array([1, 2, 3, 4, 6, 7]))
    ]
    assert sum(parts) == whole


def test_a_source_without_a_readable_record_stops_the_run(monkeypatch):
    with pytest.raises(UserError, match=r"'numbers': 50 records in a row are unreadable, the first is .*not an image"):
        take(make(Source(broken=frozenset(range(50)))), 1)
    monkeypatch.setattr(rows_module, "MOST_UNREADABLE", 5)
    with pytest.raises(UserError, match="5 records in a row"):
        take(make(Source(broken=frozenset(range(50))), threads=2), 1)


def test_records_without_text_where_text_is_wanted(monkeypatch):
    monkeypatch.setattr(Source, "__getitem__", lambda self, index: {"image": png(index), "label": 0})
    with pytest.raises(UserError, match="it has no text"):
        take(make(), 1)
    assert "text" not in take(make(text=None), 1)[0]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_io_error_stops_the_run_and_skips_nothing(threads, monkeypatch):
    monkeypatch.setattr(reader, "RETRY_SECONDS", (0.0, 0.0))
    bad = int(permutation(50, seed=0, name="numbers", epoch=0)(np.array([20]))[0])
    source = Source(failing=frozenset({bad}))
    batches = make(source, threads=threads).batches(seed=0, batch_size=8, rows=np.arange(8))
    for _ in range(2):
        next(batches)
    state = batches.state()
    with pytest.raises(UserError, match=rf"record {bad} cannot be read after 3 tries \(no such disk\)"):
        next(batches)
    assert source.reads[bad] == 3
    assert batches.state() == state
    with pytest.raises(ValueError, match="close"):  # going on would skip what failed
        next(batches)
    source.failing = frozenset()
    rest, _ = take(make(source), 2, state=state)
    same(rest, {name: array[16:] for name, array in take(make(), 4)[0].items()})
