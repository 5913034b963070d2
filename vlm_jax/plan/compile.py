"""Compiles one program for a machine that is not here, in a process of its own: `python -m vlm_jax.plan.compile`.

A process of its own because the compiler may end it (some shapes crash libtpu), because two compile at a time, and
because libtpu describes one topology a process. It reads a request from standard input and writes a `Compiled` to the
file named in its argument. What was compiled before is taken from a cache: its key is the program itself, as lowered,
with everything that it is compiled with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError
from vlm_jax.plan.subject import Change

# libtpu asks the machine for a TPU, and locks itself, unless it is told not to.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# A compile takes a fraction of the time, and its estimates of time mean nothing.
LOW_EFFORT = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile: a config (as JSON), for a topology, with a change, at full or at low effort."""

    config: str
    topology: str
    change: Change = Change()
    coarse: bool = False
    cache: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the process that compiles is started with: jax reads it when it is imported."""
        return ENVIRONMENT | (LOW_EFFORT if self.coarse else {})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        fields = json.loads(text)
        change = fields.pop("change")
        change["depths"] = tuple(map(tuple, change["depths"]))
        return cls(**fields, change=Change(**change))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compile found. Bytes and times are of one device and one step.

    Attributes:
      error: the compiler's refusal in one line; "" where it compiled.
      needed: bytes that it says are needed, where memory was the reason.
      limit: bytes that there are for a program; 0 where the compiler does not say.
      values: see `measure`; those of the compiler are missing after an error.
      kernels: Pallas kernels, what tells them apart in `hlo.Kernel` as JSON -> `count` and `moved`.
      seconds: that the compile took, when it was made. cached: it was made before.
      options: flags given to the compiler.
    """

    error: str
    needed: int | None
    limit: int
    values: dict[str, float]
    kernels: dict[str, list[float]]
    seconds: float
    cached: bool
    options: dict[str, Any]

    @classmethod
    def from_json(cls, text: str) -> Compiled:
        return cls(**json.loads(text))


def compile_request(request: Request) -> Compiled:
    """Compiles, or finds what was compiled.

    Raises:
      UserError: the mesh or the batch does not fit the machine, or the compiler is not installed.
    """
    import jax

    from vlm_jax import config as configs
    from vlm_jax import mesh as meshes
    from vlm_jax import program, startup
    from vlm_jax.plan import subject, topologies

    topology = topologies.parse(request.topology)
    devices = topologies.devices(topology)
    whole = subject.experiment_of(configs.from_json(request.config, "config", known=None))
    experiment = subject.apply(whole, request.change)
    plan = startup.make_plan(experiment, devices)
    ordered = list(plan.mesh.devices.flat)
    rows = meshes.batch_sharding(plan.mesh)
    spec = experiment.task.batch_spec(experiment.batch_size)
    batch = {name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows) for name, s in spec.items()}
    lowered = program.jitted_update(plan).lower(plan.placed(), batch)
    state = plan.placed()
    values = {
        "params": _bytes([state.params, state.frozen]),
        "opt": _bytes(state.opt),
        "ema": _bytes(state.ema),
        "state": _bytes(state.state),
        "batch": _bytes(batch),
        "parameters": float(sum(x.size for x in jax.tree.leaves([state.params, state.frozen]))),
        "model_flops": program.model_flops(plan),
    }
    versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")}
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    told = program.flags(plan)
    with_what = [lowered.as_text(), topology.name, request.coarse, versions, flags, told, list(map(str, ordered))]
    with_what.append(_reader())
    key = hashlib.sha256(json.dumps(with_what, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(request.cache).expanduser() / f"{key}.json" if request.cache else None
    if path and path.is_file():
        found = Compiled.from_json(path.read_text())
    else:
        found = dataclasses.replace(_compile(lowered, topology, ordered), options=told)
        if path and (not found.error or found.needed):  # another refusal may be of this moment
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(found, cached=True))))
            beside.replace(path)
    return dataclasses.replace(found, values={**found.values, **values})


def _compile(lowered: Any, topology: Any, devices: list[Any]) -> Compiled:
    import jax

    from vlm_jax.plan import hlo

    limit, begin = memory_limit(topology, devices), time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = hlo.memory_needed(error)
        line = " ".join(str(error).split())[:300]
        return Compiled(line, needed, limit, {}, {}, time.perf_counter() - begin, False, {})
    seconds = time.perf_counter() - begin
    values, kernels = measure(compiled, topology, devices)
    if limit and used(values) > limit:  # GPUs and CPUs take what is asked of them
        error = "the program needs more memory than the device has"
        return Compiled(error, int(used(values)), limit, values, kernels, seconds, False, {})
    return Compiled("", None, limit, values, kernels, seconds, False, {})


def used(values: Mapping[str, float]) -> float:
    """Bytes of a device's memory that a program holds while it runs."""
    held = ("arguments", "temporaries", "outputs", "code")
    return sum(values[name] for name in held) - values["aliased"]


def measure(compiled: Any, topology: Any, devices: list[Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """All that is read of a program as numbers by name, and its kernels; both are linear in the depth of the model.

    A collective of a kind has `KIND/sync/count`, `/bytes` and `/seconds`, or `KIND/async/...`.
    """
    from vlm_jax.plan import hlo, network

    read = hlo.read(compiled)
    cost = compiled.cost_analysis() or {}
    values = {f.name: float(getattr(read, f.name)) for f in dataclasses.fields(read) if f.type == "int"}
    values["compiler_flops"] = float(cost.get("flops", 0.0)) * len(devices)
    for c in read.collectives:
        name = f"{c.kind}/{'async' if c.asynchronous else 'sync'}"
        for what, value in (
            ("count", c.count),
            ("bytes", c.bytes),
            ("seconds", network.seconds(c, topology, devices) or 0.0),
        ):
            values[f"{name}/{what}"] = values.get(f"{name}/{what}", 0.0) + value
    kernels = {json.dumps([k.name, k.operands, k.results, k.flops]): [k.count, k.moved] for k in read.kernels}
    return values, kernels


def memory_limit(topology: Any, devices: list[Any]) -> int:
    """What a TPU's compiler says that it has, when it is asked for too much; a GPU's is its data sheet's."""
    if topology.platform != "tpu":
        return int(topology.chip.capacity)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from vlm_jax.plan import hlo

    sharding = NamedSharding(Mesh(np.array(devices), ("all",)), PartitionSpec("all"))
    huge = jax.ShapeDtypeStruct((len(devices) * 2**20, 2**18), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return hlo.memory_available(error) or 0
    return 0


def _bytes(tree: Any) -> float:
    import jax

    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return float(sum(size(x) for x in jax.tree.leaves(tree)))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _reader() -> str:
    """A fingerprint of what reads programs: what it found before it was changed is not taken."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in ("hlo", "network", "compile"))).hexdigest()


def main(argv: list[str]) -> int:
    """0: the answer is written; 2: a UserError is, as `{"user_error": line}`."""
    request = Request.from_json(sys.stdin.read())
    try:
        answer = dataclasses.asdict(compile_request(request))
    except UserError as error:
        answer = {"user_error": str(error)}
    Path(argv[0]).write_text(json.dumps(answer))
    return 2 if "user_error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
