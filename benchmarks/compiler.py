"""What a compiled program says of itself: memory, collectives, and the TPU compiler's estimate of its cycles."""

from __future__ import annotations

import collections
import math
import re
from typing import Any

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVE = r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\("


def read(program: Any) -> dict[str, Any]:
    """Of one device: `temporaries` in bytes; estimated `cycles` without messages; `collectives` by kind.

    A kind has its `count`, loops counted out, the `bytes` of all their results, and how many are `asynchronous`:
    other operations may run while they are under way. `cycles` is 0 where the compiler gives none (CPU, GPU).
    """
    bodies, entry = _computations(program.as_text())
    cycles, kinds = 0, collections.defaultdict(lambda: {"count": 0, "bytes": 0, "asynchronous": 0})
    spread = set()

    def walk(name: str, times: int, fused: bool = False) -> None:
        nonlocal cycles
        for line in bodies[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(found[1])
            if found := re.search(COLLECTIVE, line):
                # One that is fused with products is under way through several operations, each of which shows it.
                channel = (found[1], re.search(r"channel_id=\d+", line)[0])
                if fused and channel in spread:
                    continue
                if fused:
                    spread.add(channel)
                started = found[2] is not None
                kind = kinds[found[1]]
                kind["count"] += times
                kind["asynchronous"] += times if started or fused else 0
                kind["bytes"] += times * _result_bytes(line, started)
            if found := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                walk(found[2], times * _trips(line, bodies[found[1]]))
            elif found := re.search(r" fusion\(.*calls=%?([\w.\-]+)", line):
                walk(found[1], times, fused=True)

    walk(entry, 1)
    temporaries = program.memory_analysis().temp_size_in_bytes
    return {"temporaries": temporaries, "cycles": cycles, "collectives": {k: dict(v) for k, v in kinds.items()}}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies, body, entry = collections.defaultdict(list), None, ""
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            body = start[2]
            entry = body if start[1] else entry
        elif body:
            bodies[body].append(line)
    return bodies, entry


def _trips(line: str, condition: list[str]) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    (trips,) = re.findall(r"s32\[\]\S* constant\((\d+)\)", " ".join(condition))
    return int(trips)


def _result_bytes(line: str, started: bool) -> int:
    """What starts one has the operand, the result and two semaphores as its result: the largest is the message."""
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", re.split(COLLECTIVE, line.partition(" = ")[2])[0])
    sizes = [WIDTHS[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in shapes if t in WIDTHS]
    return max(sizes) if started else sum(sizes)


def memory_needed(error: Exception) -> int:
    """Bytes that a program needs which the compiler refused for want of memory. Raises any other error again."""
    found = re.search(r"\(([\d.]+)([MG])\) exceeds|Used ([\d.]+)([MG]) of", str(error))
    if not found:
        raise error
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * {"M": 2**20, "G": 2**30}[unit])
