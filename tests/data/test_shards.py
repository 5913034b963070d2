"""Shards that are written by processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_jax.data.shards import MANIFEST, Shards
from vlm_jax.errors import UserError

SHARDS, RECORDS = 40, 7


class Source:
    name, fingerprint = "made/up", "0123"

    def __len__(self):
        return SHARDS * RECORDS


def write(folder: Path) -> list:
    """Shards of numbers, line by line, each 50th of them unreadable. A log beside tells which were begun."""

    def shard(path: Path, numbers: range, unreadable: list) -> None:
        with open(folder.with_suffix(".log"), "a") as log:
            log.write(f"{numbers.start // RECORDS}\n")
        with open(path, "w", buffering=1) as file:
            for number in numbers:
                if number % 50 == 0:
                    unreadable.append((f"file:{number}", "it is broken"))
                else:
                    file.write(f"{number}\n")

    return Shards(folder, Source(), RECORDS, "txt", model={"grid": (4, 4)}).write(".txt", shard)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_killed_at_any_moment_the_files_are_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unreadable = write(whole)
    assert [key for key, _ in unreadable] == [f"file:{number}" for number in range(0, SHARDS * RECORDS, 50)]
    program = f"import pathlib, tests.data.test_shards as t; t.write(pathlib.Path({str(killed)!r}))"
    rng, kills = random.Random(0), 0
    for _ in range(6):
        before = len(list(killed.glob("0*")))
        process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[2])
        until = before + rng.randint(1, 8)
        while len(list(killed.glob("0*"))) < until and process.poll() is None:
            time.sleep(0.0002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        finished = contents(killed)
        expected = contents(whole)
        for name in finished:
            assert name.startswith(".") or name == MANIFEST or finished[name] == expected[name]
    assert kills > 0
    assert write(killed) == unreadable
    assert contents(killed) == expected
    started = (tmp_path / "killed.log").read_text().split()
    assert len(started) <= SHARDS + kills  # one was under way, the finished ones were not made again


def test_killed_before_there_was_a_manifest(tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / f".{MANIFEST}.part").write_text("{")
    write(folder)
    assert len(list(folder.glob("0*.txt"))) == SHARDS


@pytest.mark.parametrize("text", ["{", '"a text"', '{"title": "birds"}', '{"format": "txt", "unreadable": []}', "\xff"])
def test_a_manifest_that_is_broken_or_of_others(text, tmp_path):
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset.json is not what .* writes: it is broken, or another tool's\."):
        write(tmp_path)
    assert os.listdir(tmp_path) == [MANIFEST]
