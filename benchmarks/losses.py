"""Memory, messages and time of the contrastive losses, side by side with the other ways to compute them.

    python -m benchmarks.losses [--quick] [--output=DIR] [--picture=PATH]

With libtpu, programs are compiled for TPU v5e by the real compiler, which needs no TPU; without, for eight simulated
CPU devices. With `JAX_PLATFORMS=cuda`, they are also run and timed on one GPU. Of `open_clip_torch`, where it is
installed, the bytes that its losses keep for the backward pass are counted on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import open_clip_peer, pictures
from benchmarks.variants import AXIS, LOSSES, VARIANTS, abstract_inputs, gradients, kept_for_backward
from vlm_jax.plan import hlo
from vlm_jax.ring import ring_order

MIB = 2**20
DIM = 768
CLOCK, PEAK, HBM = 1.5e9, 197e12, int(15.75 * 2**30)  # of a TPU v5e: Hz, FLOP/s in bf16, bytes
PRODUCTS = {"sigmoid": 3, "infonce": 4}  # of all pairs, at the least: logits, two gradients; for InfoNCE logits twice
KEPT_LOCAL_BATCH = 1024
# Machine, pairs in the batch: growing batches on the largest machine, and as many pairs a chip on all of them.
TPU_CASES = [("v5e:16x16", b * 2**15) for b in (1, 4, 16, 32)] + [("v5e:4x4", 2**13), ("v5e:8x8", 2**15)]
TPU_QUICK = [("v5e:4x4", 2**13), ("v5e:2x2", 2**11)]
CPU_CASES = [("cpu:8", 2**10), ("cpu:8", 2**11), ("cpu:8", 2**12), ("cpu:4", 2**9), ("cpu:2", 2**8)]
CPU_QUICK = [("cpu:8", 2**8), ("cpu:2", 2**6)]
GPU_BATCHES = (4096, 16384, 32768, 65536)


def devices_of(machine: str) -> list[Any]:
    """`v5e:4x4`, chips to compile for, in ring order; `cpu:8`, simulated devices of this process."""
    kind, _, size = machine.partition(":")
    if kind == "cpu":
        return jax.devices("cpu")[: int(size)]
    from jax.experimental import topologies

    return ring_order(topologies.get_topology_desc(platform="tpu", topology_name=machine).devices)


def mesh_of(devices: list[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def compiled(machine: str, batch: int, dim: int = DIM, dtype=jnp.bfloat16) -> Iterator[dict[str, Any]]:
    """One row for each loss and variant: what its program with all gradients takes, by the compiler's own word."""
    mesh, estimates = mesh_of(devices_of(machine)), not machine.startswith("cpu")
    for loss in LOSSES:
        floor = PRODUCTS[loss] * 2 * batch**2 * dim / mesh.size / PEAK * 1e3
        for variant in VARIANTS:
            row = {"loss": loss, "machine": machine, "devices": mesh.size, "batch": batch, "variant": variant}
            row["kept"] = kept_for_backward(loss, variant, mesh.size, batch, dim, dtype)
            try:
                lowered = gradients(loss, variant, mesh).lower(*abstract_inputs(loss, batch, dim, dtype, mesh))
                program = hlo.read(lowered.compile())
            except jax.errors.JaxRuntimeError as error:
                needed = hlo.memory_needed(error)
                if needed is None:
                    raise
                yield row | {"fits": False, "memory": needed}
                continue
            row |= {"fits": True, "memory": program.temporaries, "collectives": program.by_kind()}
            yield row | ({"ms": program.cycles / CLOCK * 1e3, "floor_ms": floor} if estimates else {})


def kept(counts: list[int], batch: int, dim: int = DIM) -> Iterator[dict[str, Any]]:
    """Bytes a device keeps for the backward pass of f32 features, `batch` pairs a device."""
    peer = open_clip_peer.load()
    for loss in LOSSES:
        for devices in counts:
            row = {"loss": loss, "devices": devices}
            for variant in VARIANTS:
                memory = kept_for_backward(loss, variant, devices, batch * devices, dim, jnp.float32)
                yield row | {"variant": variant, "memory": memory}
            if peer and devices <= 16:  # its rank computes for real
                memory = open_clip_peer.kept_for_backward(peer, loss, devices, batch, dim)
                yield row | {"variant": "open_clip", "memory": memory}


def measured(batches: list[int], dim: int = DIM, repeats: int = 10) -> Iterator[dict[str, Any]]:
    """Median time on one device of what is there, and the most memory that was in use (None where it is not told)."""
    device = jax.devices()[0]
    mesh = mesh_of([device])
    programs = []
    for batch in batches:
        for loss in LOSSES:
            for variant in VARIANTS:
                inputs = abstract_inputs(loss, batch, dim, jnp.bfloat16, mesh)
                program = gradients(loss, variant, mesh).lower(*inputs).compile()
                programs.append((program.memory_analysis().temp_size_in_bytes, batch, loss, variant, program))
    # A device tells the peak of the whole process only: the hungriest program is the last.
    for temporaries, batch, loss, variant, program in sorted(programs, key=lambda p: p[0]):
        row = {"loss": loss, "machine": device.device_kind, "batch": batch, "variant": variant}
        try:
            times = _times(program, random_inputs(loss, batch, dim, mesh), repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            yield row | {"temporaries": temporaries, "peak": None, "ms": None}
            continue
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        yield row | {"temporaries": temporaries, "peak": peak, "ms": float(np.median(times)) * 1e3}


def _times(program, inputs, repeats: int) -> list[float]:
    jax.block_until_ready(program(*inputs))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        times.append(time.perf_counter() - begin)
    return times


def random_inputs(loss: str, batch: int, dim: int, mesh: Mesh, dtype=jnp.bfloat16) -> list[jax.Array]:
    """Unit-norm features, and scale and bias as SigLIP starts with them."""
    split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
    features = np.random.default_rng(0).standard_normal((2, batch, dim), np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    scalars = (10.0, -10.0)[: len(abstract_inputs(loss, batch, dim, dtype)) - 2]
    place = lambda x, dtype, sharding: jax.device_put(jnp.asarray(x, dtype), sharding)
    return [place(x, dtype, split) for x in features] + [place(x, jnp.float32, whole) for x in scalars]


# Tables


def tables(results: dict[str, Any]) -> str:
    """What was found, as Markdown tables."""
    parts = [
        table(
            ["loss", "machine", "pairs", "variant", "kept MiB", "temporaries MiB", "messages", "MiB", "ms", "x floor"],
            [_compiled_cells(row) for row in results["compiled"]],
        )
    ]
    counts = sorted({row["devices"] for row in results["kept"]})
    found = {(row["loss"], row["variant"], row["devices"]): _mib(row["memory"]) for row in results["kept"]}
    rows = [
        [loss, variant, *(found.get((loss, variant, n), "") for n in counts)]
        for loss, variant in dict.fromkeys((loss, variant) for loss, variant, _ in found)
    ]
    parts.append(table(["kept MiB", "variant", *(f"{n} devices" for n in counts)], rows))
    if results["measured"]:
        cells = [
            [
                row["loss"],
                row["machine"],
                f"{row['batch']:,}",
                row["variant"],
                *(_mib(row[key]) if row[key] is not None else "" for key in ("temporaries", "peak")),
                f"{row['ms']:.2f}" if row["ms"] is not None else "out of memory",
            ]
            for row in results["measured"]
        ]
        header = ["loss", "measured on", "pairs", "variant", "temporaries MiB", "peak MiB", "ms"]
        parts.append(table(header, cells))
    return "\n\n".join(parts)


def _compiled_cells(row: dict[str, Any]) -> list[str]:
    first = [row["loss"], row["machine"], f"{row['batch']:,}", row["variant"], _mib(row["kept"])]
    if not row["fits"]:
        return [*first, f"does not fit: {_mib(row['memory'])}", "", "", "", ""]
    kinds = row["collectives"]
    sent = sum(kind["bytes"] for kind in kinds.values())
    names = [
        f"{kind['count']} {name}" + (f" ({kind['asynchronous']} async)" if kind["asynchronous"] else "")
        for name, kind in sorted(kinds.items())
    ]
    times = [f"{row['ms']:.2f}", f"{row['ms'] / row['floor_ms']:.2f}"] if "ms" in row else ["", ""]
    return [*first, _mib(row["memory"]), ", ".join(names), f"{sent / MIB:,.0f}", *times]


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also stand below one another in a terminal."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in lines)


def run(quick: bool) -> dict[str, Any]:
    """All of it, as the JSON that is written."""
    with_tpu = importlib.util.find_spec("libtpu") is not None
    cases = (TPU_QUICK if quick else TPU_CASES) if with_tpu else (CPU_QUICK if quick else CPU_CASES)
    rows = []
    for machine, batch in cases:
        print(f"compiling for {machine}, {batch:,} pairs", flush=True)
        rows += compiled(machine, batch)
    on_gpu = jax.devices()[0].platform == "gpu"
    known = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "versions": {
            name: known[name] for name in ("jax", "libtpu", "open-clip-torch", "open_clip_torch") if name in known
        },
        "dim": DIM,
        "limit": HBM if with_tpu else None,
        "kept_local_batch": KEPT_LOCAL_BATCH // (8 if quick else 1),
        "compiled": rows,
        "kept": list(kept([1, 2, 4] if quick else [1, 4, 16, 64, 256], KEPT_LOCAL_BATCH // (8 if quick else 1))),
        "measured": list(measured(GPU_BATCHES[:1] if quick else GPU_BATCHES)) if on_gpu else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small cases: half a minute")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--picture", type=pathlib.Path, help="default: OUTPUT/losses_memory.svg")
    arguments = parser.parse_args()
    # Compiling for TPUs takes none, and several processes may do it at a time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
    jax.config.update("jax_num_cpu_devices", 8)
    results = run(arguments.quick)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "losses.json").write_text(json.dumps(results, indent=1) + "\n")
    pictures.draw(results, arguments.picture or arguments.output / "losses_memory.svg")
    print(tables(results))


if __name__ == "__main__":
    main()
