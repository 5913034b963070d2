"""Every region of every file of a checkpoint damaged in turn: it is found, or nothing is read from there.

What each kind of damage is called, and what a run does then: tests/checkpoint/test_damage.py.
"""

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoint.small_runs import META, STACKS, assert_identical, make_items, shapes
from vlm_jax.checkpoint import Store

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

REGIONS = 8
Damage = Callable[[], None]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    with Store(workdir, stacks=STACKS) as store:
        for step in (1, 2):
            store.save(step, make_items(step), META)
    return workdir / "checkpoints"


def regions(raw: bytes, rng: random.Random) -> dict[str, bytes]:
    """A file's content with each of its regions damaged in turn, by what was done."""
    cases = {"emptied": b"", "half": raw[: len(raw) // 2], "cut": raw[:-1], "longer": raw + b"\0" * 64}
    ends = [len(raw) * k // REGIONS for k in range(REGIONS + 1)]
    for k, (start, stop) in enumerate(itertools.pairwise(ends)):
        if start < stop:
            cases[f"zeros in {k}"] = raw[:start] + bytes(stop - start) + raw[stop:]
            at, bit = rng.randrange(start, stop), 1 << rng.randrange(8)
            cases[f"bit in {k}"] = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
    return {what: content for what, content in cases.items() if content != raw}


def swap(a: Path, b: Path) -> None:
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])


def all_damages(step: Path, other: Path, seed: int) -> dict[str, Damage]:
    """What can be done to the files of a step, by name."""
    rng, cases = random.Random(seed), {}
    paths = sorted(path for path in step.rglob("*") if path.is_file())
    for path, following in zip(paths, paths[1:] + paths[:1]):
        name = str(path.relative_to(step))
        for what, content in regions(path.read_bytes(), rng).items():
            cases[f"{name}: {what}"] = lambda path=path, content=content: path.write_bytes(content)
        cases[f"{name}: deleted"] = path.unlink
        cases[f"{name}: swapped with {following.name}"] = lambda a=path, b=following: swap(a, b)
        # Names of data files are random; those of one item are told apart by their order.
        theirs = sorted(p for p in (other / path.relative_to(step)).parent.glob("*") if p.is_file())
        for twin in [p for p in theirs if p.name == path.name] or theirs[:1]:
            cases[f"{name}: that of the other step"] = lambda a=path, b=twin: a.write_bytes(b.read_bytes())
    return cases


def check(checkpoints: Path, folder: Path, every: int, seed: int) -> None:
    """Does every `every`-th of all damages to step 2, one at a time; restored is 2 as it was, or 1 with one line."""
    names = list(all_damages(checkpoints / "2", checkpoints / "1", seed))
    counts = {1: 0, 2: 0}
    for name in names[seed % every :: every]:
        shutil.copytree(checkpoints, folder / "checkpoints")
        all_damages(folder / "checkpoints" / "2", folder / "checkpoints" / "1", seed)[name]()
        lines = []
        step, items, _ = Store(folder, stacks=STACKS, warn=lines.append).restore_latest(shapes(make_items()))
        assert (step, len(lines)) in ((2, 0), (1, 1)), (name, lines)
        assert_identical(items, make_items(step))
        counts[step] += 1
        shutil.rmtree(folder / "checkpoints")
    print(f"{sum(counts.values())} damages: {counts[1]} were found, {counts[2]} were harmless")
    assert counts[1]


def test_some_regions(two_steps, tmp_path):
    check(two_steps, tmp_path, every=41, seed=7)


@pytest.mark.full
def test_every_region(two_steps, tmp_path):
    assert len(all_damages(two_steps / "2", two_steps / "1", seed=0)) >= 300
    check(two_steps, tmp_path, every=1, seed=0)
