"""Restarts on any hosts and workers: the batches of the run without a restart, byte for byte, and its state."""

from __future__ import annotations

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data.numbered import PLAIN, TEXT, VARIED, Numbered, same, take
from vlm_jax.data.documents import Documents
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline

HOSTS, WORKERS = (1, 2, 4), (0, 1, 2, 3)
KINDS = list(itertools.product(HOSTS, WORKERS))
# Rows of a batch, and batches before and after the restart.
BATCH, HEAD, TAIL = 8, 2, 2
DAMAGED = ((3, b"junk"), (7, b""), (11, "\udcff"))
# A window is on two hosts where there are four.
PACKED = dict(
    image=PLAIN,
    packing=Packing(
        patch_size=2,
        tokens=40,
        images=3,
        text_tokens=48,
        examples=8,
        rows=4,
        budgets=(4, 9, 16),
        smallest=2,
        drop=(0, 0.2, 0),
    ),
)
# Too short for a caption and an image: a window of them is drawn.
DOCUMENTS = dict(documents=Documents(images=1, image_tokens=4))


def source(length: int) -> Numbered:
    return Numbered("alone", length, damaged=DAMAGED)


def mixture(length: int) -> Mixture:
    parts = dict(
        few=Part(Numbered("few", length, damaged=DAMAGED), weight=1, image=PLAIN, caption="first"),
        many=Part(Numbered("many", 1000, failing=((5, "torn"),)), weight=1.5),
    )
    return Mixture(parts)


# Lengths for which a restart is in the middle of an epoch, with the end of one before it and of another after it.
DATA = {
    "source": (source(13), {}),
    "mixture": (mixture(5), {}),
    "packed": (source(13), PACKED),
    "packed mixture": (mixture(5), PACKED),
    "documents": (mixture(5), DOCUMENTS),
}


def make(data: str, **options) -> Pipeline:
    records, rows = DATA[data]
    return Pipeline(records, **{"image": VARIED, "text": TEXT, "threads": 0, **rows, **options})


def of_hosts(pipeline, hosts, count, **options):
    """Batches joined from what `hosts` processes hold of them, and the state that they agree on."""
    parts, ended = [], []
    for rows in np.array_split(np.arange(BATCH), hosts):
        batches = pipeline.batches(seed=3, batch_size=BATCH, rows=rows, **options)
        try:
            parts.append([next(batches) for _ in range(count)])
        finally:
            batches.close()
        ended.append(batches)
    names, whole = parts[0][0], [part[step] for step in range(count) for part in parts]
    return {name: np.concatenate([batch[name] for batch in whole]) for name in names}, agreed(ended)


def agreed(hosts) -> dict:
    """The state of all, gathered as processes do."""
    sent, barrier = [None] * len(hosts), threading.Barrier(len(hosts), timeout=20)

    def state(host):
        def gather(mine):
            sent[host] = json.dumps(mine)
            barrier.wait()
            return [json.loads(told) for told in sent]

        return hosts[host].state(gather)

    with ThreadPoolExecutor(len(hosts)) as pool:
        first, *others = pool.map(state, range(len(hosts)))
    assert all(other == first for other in others)
    return json.loads(json.dumps(first))


def whole(data: str):
    """The batches up to the restart, those after it, and the state there, in one go in this process."""
    batches, end = take(make(data), HEAD + TAIL, batch_size=BATCH, seed=3)
    cut = HEAD * BATCH
    return {name: array[:cut] for name, array in batches.items()}, {n: a[cut:] for n, a in batches.items()}, end


def begins(data: str, kind: tuple[int, int], head: dict) -> dict:
    """Runs up to the restart on (hosts, workers), and gives the state there."""
    batches, state = of_hosts(make(data, workers=kind[1]), kind[0], HEAD)
    same(batches, head)
    return state


def goes_on(data: str, kind: tuple[int, int], state: dict, tail: dict, end: dict) -> None:
    """Restarts on (hosts, workers)."""
    batches, last = of_hosts(make(data, workers=kind[1], threads=2), kind[0], TAIL, state=state)
    same(batches, tail)
    assert last == end


@pytest.mark.parametrize("data", DATA)
def test_the_grid_tests_what_it_says(data):
    """The restart is in the middle of an epoch, ends of epochs are on both sides of it, and something is damaged."""
    _, _, end = whole(data)
    name, length = next((name, len(part.source)) for name, part in make(data).parts.items())
    _, middle = take(make(data), HEAD, batch_size=BATCH, seed=3)
    had = middle["rows"][name]
    assert had > length and had % length and end["rows"][name] // length > had // length
    assert 0 < middle["unreadable"] < end["unreadable"]


@pytest.mark.parametrize(
    "data, before, after",
    [
        ("source", (1, 2), (2, 0)),
        ("mixture", (4, 1), (1, 3)),
        ("packed", (2, 0), (4, 1)),
        ("packed mixture", (1, 1), (2, 2)),
        ("documents", (1, 2), (4, 0)),
        *((data, (4, 0), (2, 0)) for data in DATA),
    ],
)
def test_a_restart_changes_nothing(data, before, after):
    head, tail, end = whole(data)
    goes_on(data, after, begins(data, before, head), tail, end)


@pytest.mark.full
@pytest.mark.parametrize("data", DATA)
def test_a_restart_changes_nothing_on_any_hosts_and_workers(data):
    """All 12 kinds leave one and the same state, from which all 12 kinds go on: so any one follows any other."""
    head, tail, end = whole(data)
    states = [begins(data, kind, head) for kind in KINDS]
    assert all(state == states[0] for state in states)
    for kind, state in zip(KINDS[5:] + KINDS[:5], states):
        goes_on(data, kind, state, tail, end)
