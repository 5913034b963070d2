"""Reads a compiled program: memory, collectives, kernels, and the TPU compiler's estimate of its cycles.

What runs in a loop is counted as often as the loop runs. The text of HLO is no stable interface:
`tests/plan/test_hlo.py` holds this to programs whose content is known.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
WIDTHS |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-gather", "all-reduce", "all-to-all", "ragged-all-to-all", "reduce-scatter", "collective-permute", "send")
# They only name, or pass on, what another instruction has made.
FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional", "after-all")
# Groups of one device each, such as those of an axis of the mesh that is not split: nobody talks.
ALONE = re.compile(r"\{(?:\{\d+\},?)+\}|\[\d+,1\]<=.*")
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Messages of one kind between the same devices.

    Attributes:
      kind: `all-gather`, `all-reduce`, ...; `send` goes between slices.
      count: how often it runs.
      bytes: of the results of all runs together, on one device.
      asynchronous: other operations may run while it is under way.
      groups: the devices that talk, as HLO writes it; see `vlm_jax.plan.network`.
      operation: where in the program it comes from.
    """

    kind: str
    count: int
    bytes: int
    asynchronous: bool
    groups: str
    operation: str


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel, and all its runs.

    Attributes:
      name: that its code gives it.
      operands, results: shapes, as `bf16[128,196,2304]`.
      flops: of one run, as the kernel's own cost estimate has them; 0 where it has none.
      count: how often it runs.
      moved: bytes of operands and results that lie in main memory, over all runs; a TPU keeps some on the chip.
    """

    name: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    flops: float
    count: float
    moved: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of one device.

    Attributes:
      arguments, outputs, aliased, temporaries, code, peak: bytes, as the compiler says; `aliased` are results that take
        the place of arguments. `peak` of a TPU counts its vector memory too.
      cycles: the TPU compiler's estimate, without collectives and kernels; 0 where it gives none (CPU, GPU).
      traffic: bytes that instructions read from and write to the device's main memory, kernels included.
      collectives: one entry for each kind and its devices.
      kernels: one entry for each name and shapes.
      unknown_loops: loops whose number of turns the program does not say; each is counted as one turn.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    peak: int
    cycles: int
    traffic: int
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]
    unknown_loops: int

    def by_kind(self) -> dict[str, dict[str, int]]:
        """kind -> `count`, `bytes`, and how many are `asynchronous`."""
        out: dict[str, dict[str, int]] = {}
        for c in self.collectives:
            kind = out.setdefault(c.kind, {"count": 0, "bytes": 0, "asynchronous": 0})
            kind["count"] += c.count
            kind["bytes"] += c.bytes
            kind["asynchronous"] += c.count if c.asynchronous else 0
        return out


def read(program: Any) -> Program:
    """Reads what `jax.jit(f).lower(...).compile()` gives."""
    memory = program.memory_analysis()
    counted = _count(parse(program.as_text()))
    return Program(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        **counted,
    )


def memory_needed(error: Exception) -> int | None:
    """Bytes that a program needs which the compiler refused for want of memory; None for any other error."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", str(error))
    if not found:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[unit])


def memory_available(error: Exception) -> int | None:
    """Bytes that there are for a program, from the same message."""
    found = re.search(r"available HBM \(([\d.]+)([MG])\)|Used [\d.]+[KMG] of ([\d.]+)([MG])", str(error))
    if not found:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * {"M": 2**20, "G": 2**30}[unit])


# Text


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = type op(operands)attributes`; `type` and `attributes` as text."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, *attributes: str) -> str | None:
        """The computation that one of the attributes (`calls`, `body`, ...) names."""
        found = re.search(rf"\b(?:{'|'.join(attributes)})=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """The computations of a program by name, and which one is run."""

    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Module:
    """The instructions of HLO text."""
    computations: dict[str, list[Instruction]] = collections.defaultdict(list)
    body, entry = "", ""
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            body, entry = start[2], start[2] if start[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", line):
            arguments, _, rest = found[5].partition(")")
            value = tuple(re.findall(r"%([\w.\-]+)", arguments)) or (arguments,)
            computations[body].append(Instruction(found[2], found[3], found[4], value, rest, bool(found[1])))
    return Module(computations, entry)


def elements(type_: str) -> list[str]:
    """The types of a tuple; of anything else, itself."""
    if not type_.startswith("("):
        return [type_]
    parts, depth = [""], 0
    for character in re.sub(r"/\*.*?\*/", "", type_)[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def arrays(type_: str) -> Iterator[tuple[str, int, str]]:
    """(shape as `bf16[8,128]`, bytes, layout) of every array in a type."""
    for found in re.finditer(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", type_):
        if found[1] in WIDTHS:
            size = WIDTHS[found[1]] * math.prod(int(n) for n in found[2].split(",") if n)
            yield f"{found[1]}[{found[2]}]", size, found[3] or ""


def size(type_: str) -> int:
    """Bytes of all arrays in a type."""
    return sum(found for _, found, _ in arrays(type_))


def main_memory(type_: str) -> int:
    """Bytes of the arrays in a type that lie in main memory, and not in one of a TPU's memories on the chip."""
    return sum(found for _, found, layout in arrays(type_) if not re.search(r"S\(\d+\)", layout))


# Counting


def _count(module: Module) -> dict[str, Any]:
    cycles, traffic, unknown = 0, 0, 0
    messages: dict[tuple, list[int]] = collections.defaultdict(lambda: [0, 0])
    kernels: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0])
    seen: set[tuple[str, str]] = set()  # collectives that are spread over several fusions

    def walk(name: str, times: int, inside: str = "") -> None:
        nonlocal cycles, traffic, unknown
        body = module.computations[name]
        types = {i.name: i.type for i in body}
        for i in body:
            if found := re.search(r'"estimated_cycles":"(\d+)"', i.attributes):
                cycles += times * int(found[1])
            if not inside and i.op not in FREE and not i.op.endswith("-done"):
                traffic += times * _traffic(module, i, types)
            kind = i.op.removesuffix("-start")
            if kind in KINDS and not ALONE.fullmatch(groups := _groups(i)):
                part = _scattered(body, i) if inside == "fusion" else None
                kind = "reduce-scatter" if part else kind
                # What is fused with products is under way through several fusions, each of which shows it.
                mark = kind, _channel(i)
                if inside != "fusion" or mark not in seen:
                    seen.add(mark)
                    alone = part is not None and part.root  # a fusion of nothing else
                    asynchronous = i.op.endswith("-start") or kind == "send" or (bool(inside) and not alone)
                    entry = messages[kind, asynchronous, groups, _operation(i)]
                    entry[0] += times
                    entry[1] += times * size(part.type if part else _result(i))
            if i.op == "custom-call" and any(f'"{target}"' in i.attributes for target in KERNELS):
                shapes = tuple(s for o in i.operands for s, _, _ in arrays(types.get(o, "")))
                results = tuple(s for s, _, _ in arrays(i.type))
                entry = kernels[_kernel_name(i), shapes, results, _flops(i)]
                entry[0] += times
                entry[1] += times * sum(map(main_memory, (i.type, *(types.get(o, "") for o in i.operands))))
            if i.op == "while":
                turns = _trips(module, i)
                unknown += turns is None
                walk(i.called("body"), times * (turns or 1))
            elif i.op == "fusion":
                walk(i.called("calls"), times, "fusion")
            elif i.op == "call":
                walk(i.called("to_apply"), times, inside)
            elif i.op == "async-start":
                walk(i.called("calls"), times, "async")
            elif i.op == "conditional":  # one branch runs; which one is not known
                names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.attributes)
                listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
                names += re.findall(r"%?([\w.\-]+)", listed[1]) if listed else []
                walk(max(names, key=lambda n: len(module.computations[n])), times, inside)

    walk(module.entry, 1)
    return {
        "cycles": cycles,
        "traffic": traffic,
        "collectives": tuple(
            Collective(kind, count, total, asynchronous, groups, operation)
            for (kind, asynchronous, groups, operation), (count, total) in messages.items()
        ),
        "kernels": tuple(Kernel(*key, *total) for key, total in kernels.items()),
        "unknown_loops": unknown,
    }


def _trips(module: Module, loop: Instruction) -> int | None:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.called("condition")]
    bounds = [value for i in condition if (value := _integer(i)) is not None]
    return math.ceil(bounds[0] / _step(module, loop)) if len(bounds) == 1 else None


def _step(module: Module, loop: Instruction) -> int:
    """What a turn adds to the counter that the condition compares: more than 1 where the compiler unrolled the loop."""
    condition = {i.name: i for i in module.computations[loop.called("condition")]}
    body = {i.name: i for i in module.computations[loop.called("body")]}
    compared = next((i for i in condition.values() if i.root and i.op == "compare"), None)
    read = (condition.get(name) for name in compared.operands) if compared else ()
    counter = next((i for i in read if i and i.op == "get-tuple-element"), None)
    after = next((i for i in body.values() if i.root and i.op == "tuple"), None)
    if counter is None or after is None:
        return 1
    added = body.get(after.operands[int(re.search(r"index=(\d+)", counter.attributes)[1])])
    if added is None or added.op != "add":
        return 1
    steps = [value for name in added.operands if (value := _integer(body.get(name))) is not None]
    return max(1, steps[0]) if steps else 1


def _integer(i: Instruction | None) -> int | None:
    """The value of an integer constant."""
    constant = i is not None and i.op == "constant" and re.match(r"[su]32\[\]", i.type)
    return int(i.operands[0]) if constant else None


def _scattered(body: list[Instruction], i: Instruction) -> Instruction | None:
    """The part of an all-reduce that is all that a fusion takes of it: so TPUs have their reduce-scatters."""
    users = [u for u in body if i.name in u.operands]
    return users[0] if i.op == "all-reduce" and [u.op for u in users] == ["dynamic-slice"] else None


def _result(i: Instruction) -> str:
    """The type of what a collective gives; what starts one gives its operands and semaphores as well."""
    if i.op in ("all-gather-start", "collective-permute-start"):
        return elements(i.type)[1]
    return elements(i.type)[0] if i.op == "send" else i.type


def _channel(i: Instruction) -> str:
    found = re.search(r'async_collective_name="([^"]*)"|(channel_id=\d+)', i.attributes)
    return found[0] if found else i.name


def _groups(i: Instruction) -> str:
    """From after `replica_groups=` or `source_target_pairs=` to the next attribute."""
    found = re.search(r"(?:replica_groups|source_target_pairs)=(.*?)(?:, [a-z_]+=(?!\()|$)", i.attributes)
    return found[1] if found else ""


def _operation(i: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', i.attributes)
    return found[1] if found else ""


def _kernel_name(i: Instruction) -> str:
    """Pallas puts it before `pallas_call` in the operation's path; failing that, the instruction's name."""
    found = re.search(r"([^/]+)/pallas_call", _operation(i))
    return found[1] if found else i.name.split(".")[0]


def _flops(i: Instruction) -> float:
    found = re.search(r'"cost_estimate":(\{[^}]*\})', i.attributes)
    return float(json.loads(found[1]).get("flops", 0)) if found else 0.0


def _traffic(module: Module, i: Instruction, types: dict[str, str]) -> int:
    """Bytes of main memory that one instruction reads and writes: a slice for what is sliced, not the whole."""
    if i.op in ("dynamic-slice", "slice", "slice-start", "gather"):
        out = elements(i.type)[1] if i.op == "slice-start" else i.type
        return main_memory(types.get(i.operands[0], "")) and size(out) + main_memory(out)
    if i.op == "dynamic-update-slice":
        return main_memory(i.type) and 2 * size(types.get(i.operands[1], ""))
    if i.op == "copy-start":
        into, out = elements(i.type)[:2]
        return main_memory(into) + main_memory(out)
    if i.op.endswith("-start"):
        return 0
    operands = [types.get(o, "") for o in i.operands]
    if i.op != "fusion":
        return main_memory(i.type) + sum(map(main_memory, operands))
    body = module.computations[i.called("calls")]
    inner = {j.name: j.type for j in body}
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for j in body:
        for operand in j.operands:
            users[operand].append(j)
    total = 0
    for j in body:
        if j.op == "parameter":
            outer = operands[int(j.operands[0])]
            slices = [
                u for u in users[j.name] if u.op in ("dynamic-slice", "slice", "gather") and u.operands[0] == j.name
            ]
            updated = [u for u in users[j.name] if u.op == "dynamic-update-slice" and u.operands[0] == j.name]
            whole = len(slices) + len(updated) < len(users[j.name])
            if main_memory(outer):
                total += main_memory(outer) if whole else sum(size(u.type) for u in slices)
        elif j.op == "dynamic-update-slice" and main_memory(i.type):
            total += size(inner.get(j.operands[1], "")) - size(j.type)
    return total + main_memory(i.type)
