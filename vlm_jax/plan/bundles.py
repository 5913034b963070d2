"""Cycles of this package's Pallas kernels on a TPU, from the instructions that the compiler schedules for them.

XLA gives Pallas calls no estimate. Its compiler does dump the VLIW bundles of a kernel, one a cycle: counted with the
turns of the loops they are in, they are a lower bound that leaves out stalls. Where moving the operands and results
takes longer, that counts instead.

Each kernel is compiled alone, in a process of its own (the dump is asked for before the compiler is loaded), and the
count is kept in `~/.cache/vlm_jax/kernels`. A kernel that this package did not write, or a machine without the
compiler, has no count; `vlm_jax.plan.kernels` then has its analytic bound: FLOPs at peak, or bytes at full bandwidth.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

SECONDS = 600  # for all kernels of one call
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "s32": "int32"}

# A kernel in a compiled program: its name, and the shapes of its operands (`bf16[32,196,2304]`).
Call = tuple[str, tuple[str, ...]]


def cycles(name: str, operands: Sequence[str], chip: str) -> int:
    """Cycles of one run of a kernel on one device (a whole chip), 0 where they cannot be told. See `cycles_of`."""
    call = name, tuple(operands)
    return cycles_of([call], chip).get(call, 0)


def cycles_of(calls: Iterable[Call], chip: str) -> dict[Call, int]:
    """The same for several kernels, those that are new compiled in one go. What cannot be told is left out.

    Args:
      chip: as `vlm_jax.plan.topologies.CHIPS` has it.
    """
    return {call: max(counted, moving) for call, (counted, moving) in counts(calls, chip).items()}


def counts(calls: Iterable[Call], chip: str) -> dict[Call, tuple[int, int]]:
    """Cycles of the scheduled bundles, and cycles that it takes to move operands and results from and to HBM."""
    from vlm_jax.plan.topologies import CHIPS

    calls = [
        call
        for call in dict.fromkeys((name, tuple(operands)) for name, operands in calls)
        if _kernel(*call) is not None
    ]
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vlm_jax" / "kernels"
    kept = {call: folder / f"{_key(call, chip)}.json" for call in calls}
    missing = [call for call in calls if not kept[call].is_file()]
    if missing and importlib.util.find_spec("libtpu"):
        folder.mkdir(parents=True, exist_ok=True)
        for call, found in zip(missing, _in_another_process(missing, chip)):
            part = kept[call].with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(found))
            part.replace(kept[call])
    found = {call: json.loads(kept[call].read_text()) for call in calls if kept[call].is_file()}
    byte = CHIPS[chip].clock / CHIPS[chip].memory
    return {call: (f["bundles"], math.ceil(f["bytes"] * byte)) for call, f in found.items()}


def _key(call: Call, chip: str) -> str:
    """Of what the count depends on: the call, the compiler, and the code of the kernels."""
    from vlm_jax.nn import kernels

    code = [path.read_bytes() for path in sorted(pathlib.Path(kernels.__file__).parent.glob("*.py"))]
    versions = [importlib.metadata.version(name) for name in ("jax", "libtpu") if importlib.util.find_spec(name)]
    return hashlib.sha256(repr((call, chip, versions, code)).encode()).hexdigest()[:32]


def _in_another_process(calls: Sequence[Call], chip: str) -> list[dict[str, int]]:
    """`bundles` and `bytes` of each call; fewer, or none, where the compiler failed."""
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_hlo_text=true --xla_jf_dump_llo_text=true"
        compiler = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        run = subprocess.run(
            [sys.executable, "-m", "vlm_jax.plan.bundles", chip, folder],
            env=os.environ | compiler | {"LIBTPU_INIT_ARGS": dump},
            input=json.dumps(calls),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"bundles"')]


# In the process of its own


def main(chip: str, folder: str) -> None:
    """Compiles the calls that stdin lists, and prints a line of JSON for each."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from vlm_jax.plan import topologies

    one = next(name for name in ("1x1", "1x1x1") if name in topologies.CHIPS[chip].shapes)
    mesh = Mesh(topologies.devices(topologies.parse(f"{chip}:{one}"))[:1], "x")
    sharding = NamedSharding(mesh, PartitionSpec())
    for name, operands in json.load(sys.stdin):
        kernel = _kernel(name, operands)
        shapes = [jax.ShapeDtypeStruct(*_shape(operand), sharding=sharding) for operand in operands]
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels ask for the chip
            jax.jit(kernel).lower(*shapes).compile()
            jaxpr = jax.make_jaxpr(kernel)(*shapes).jaxpr
        (call,) = [e for e in _equations(jaxpr) if e.primitive.name == "pallas_call"]
        moved = sum(v.aval.size * v.aval.dtype.itemsize for v in (*call.invars, *call.outvars))
        steps = math.prod(call.params["grid_mapping"].grid)
        (text,) = pathlib.Path(folder).glob(f"*-{name}.*-final_bundles.txt")
        print(json.dumps({"bundles": count(text.read_text(), steps), "bytes": moved}), flush=True)
        for dump in pathlib.Path(folder).iterdir():  # a name may come again, with other operands
            dump.unlink()


def _equations(jaxpr: Any) -> Iterable[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in (v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            yield from _equations(getattr(inner, "jaxpr", inner))


def count(text: str, steps: int) -> int:
    """Bundles that a dumped kernel executes over all `steps` of its grid, branches taken to be.

    The outer loop goes over the grid and two turns more, in which only copies are under way. What is jumped over
    unless a number is 0, as a kernel's work at its first step is, counts once.
    """
    nonzero = set(re.findall(r"(%p\w+) = scmp\.ne\.s32\.totalorder %\w+, 0\b", text))
    first: set[int] = set()
    jumped = False
    tests = dict(re.findall(r"(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(\S+\), )?%\w+, (\d+) /\* loop exit test", text))
    starts: list[int] = []
    loops: list[tuple[int, int, int]] = []
    lines = re.findall(r"^ *(?:0x)?[0-9a-f]+ +(?:(L[BH]|P[BF]|CT|LE))?[^:\n]*:(.*)$", text, re.MULTILINE)
    for i, (mark, body) in enumerate(lines):
        if mark == "LB":
            starts.append(i)
        jumped = jumped and mark != "PF"
        if jumped:
            first.add(i)
        jumped = jumped or not nonzero.isdisjoint(re.findall(r"sbr\.rel \((%p\w+)\)", body))
        for predicate in re.findall(r"sbr\.rel \(!(%p\w+)\)", body):
            if predicate in tests and starts:
                loops.append((starts.pop(), i, int(tests[predicate])))
    total = 0
    for i in range(len(lines)):
        around = sorted(loop for loop in loops if loop[0] <= i <= loop[1])
        turns = [n for _, _, n in around]
        if steps > 1 and turns:
            turns[0] = 1 if i in first else turns[0] - 2
        total += math.prod(turns)
    return total


def _shape(operand: str) -> tuple[tuple[int, ...], str]:
    kind, sizes = re.fullmatch(r"(\w+)\[([\d,]*)\]", operand).groups()
    return tuple(int(n) for n in sizes.split(",") if n), DTYPES[kind]


def _kernel(name: str, operands: Sequence[str]) -> Any:
    """The kernel that a compiled program names, as a function of its operands; None where it is none of ours."""
    kinds = {"attention": _attention, "add_norm": _add_norm, "perceptron": _perceptron}
    for kind, build in kinds.items():
        if found := re.match(kind + r"_(forward|backward)_b\d+", name):
            return build(name, found[1], operands)
    return None


def _attention(name: str, stage: str, operands: Sequence[str]) -> Any:
    import jax.numpy as jnp

    from vlm_jax.nn.kernels import whole_image
    from vlm_jax.nn.kernels.geometry import Geometry

    found = re.fullmatch(r"attention_\w+?_b(\d+)_t(\d+)_h(\d+)x(\d+)_k(\d+)(_causal)?(_masked)?(_bias)?", name)
    if not found:
        return None
    batch, time, num_heads, head_dim, keys = map(int, found.groups()[:5])
    itemsize = jnp.dtype(_shape(operands[0])[1]).itemsize
    causal, masked, bias_bar = (flag is not None for flag in found.groups()[5:])
    geometry = Geometry(batch, time, num_heads * head_dim, num_heads, keys, itemsize, causal, masked, bias_bar)
    arrays = 1 if stage == "forward" else 4
    return lambda *args: getattr(whole_image, stage)(*args[:arrays], args[arrays:], geometry, interpret=False)


def _add_norm(name: str, stage: str, operands: Sequence[str]) -> Any:
    from vlm_jax.nn.kernels import add_norm

    arrays = len(operands) - (2 if stage == "forward" else 1)
    options = add_norm.Options(epsilon=1e-6, interpret=False, y_bias=name.endswith("_bias"))
    return lambda *args: getattr(add_norm, stage)(list(args[:arrays]), list(args[arrays:]), options)


def _perceptron(name: str, stage: str, operands: Sequence[str]) -> Any:
    from vlm_jax.nn.kernels import mlp, mlp_tpu

    activation = re.fullmatch(r"perceptron_\w+?_b\d+_t\d+_d\d+x\d+_(\w+)", name)[1]
    biases = [_shape(operand)[0][:-1] == (1,) for operand in operands]

    def kernel(*args):
        args = [a[0] if b else a for a, b in zip(args, biases)]
        options = mlp.options_for(stage, args[0], args[1 if stage == "forward" else 2], activation)
        return getattr(mlp_tpu, stage)(*args, options=options)

    return kernel


if __name__ == "__main__":
    main(*sys.argv[1:])
