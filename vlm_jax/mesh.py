"""The device mesh: axes `data`, `fsdp`, `tensor`; which parameter lies where, by rules over names; batches by rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax import tree
from vlm_jax.errors import UserError, closest
from vlm_jax.ring import ring_order

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many devices each axis has (one of them -1: all that are left), and the rules of partition.

    A rule is (regular expression over the whole per-layer name, spec); the first that matches counts. A spec is
    `replicate`, `fsdp` (the largest dimension that the axis divides, where the array has at least `min_size`
    elements), or one axis name a dimension, `-` for none: `-,tensor`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, str], ...] = ((".*", "fsdp"),)
    min_size: int = 2**14

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise UserError(f"mesh {sizes}: sizes are positive, and at most one is -1 (all devices that are left).")
        for pattern, spec in self.rules:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"mesh.rules: {pattern!r} is no regular expression: {error}.") from error
            if spec not in ("replicate", "fsdp"):
                named = [part.strip() for part in spec.split(",") if part.strip() != "-"]
                if len(named) > len(set(named)):
                    raise UserError(f"mesh.rules: {spec!r} names an axis twice.")
                for part in spec.split(","):
                    if part.strip() not in (*AXES, "-"):
                        raise UserError(
                            f"mesh.rules: {spec!r} names {part!r}; {closest(part, [*AXES, '-', 'replicate'])}"
                        )

    def make(self, devices: Sequence[Any]) -> Mesh:
        """The mesh over `devices`, in `ring_order` where they all lie along one axis, else in the order given.

        The ring of a loss goes over `data` and `fsdp` flattened. Where more axes than one are split, collectives
        run over parts of the machine, and the compiler for TPU v5e dies of parts that are no rectangles (all-gather
        over `fsdp=16` on 16x16 chips in ring order, libtpu 0.0.42). In jax's own order such meshes compile.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = int(np.prod([s for s in sizes if s != -1]))
        sizes = [len(devices) // fixed if s == -1 else s for s in sizes]
        if int(np.prod(sizes)) != len(devices):
            given = " x ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)
            raise UserError(
                f"mesh {given} does not make {len(devices)} device(s); set one axis to -1, or their product to that."
            )
        ordered = ring_order(devices) if len(devices) in sizes else devices
        return Mesh(np.asarray(ordered).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


# Parameters


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a parameter lies, and the rule that put it there."""

    rule: str
    spec: PartitionSpec


def place(name: str, shape: tuple[int, ...], layout: Layout, mesh: Mesh) -> Placement:
    """The placement of one per-layer parameter. Raises UserError where an explicit rule does not fit the shape."""
    for pattern, spec in layout.rules:
        if not re.fullmatch(pattern, name):
            continue
        rule = f"{pattern} -> {spec}"
        if spec == "replicate":
            return Placement(rule, PartitionSpec())
        if spec == "fsdp":
            return Placement(rule, _largest(shape, layout.min_size, mesh.shape["fsdp"]))
        axes = [None if part.strip() == "-" else part.strip() for part in spec.split(",")]
        if len(axes) != len(shape) or any(a and size % mesh.shape[a] for a, size in zip(axes, shape)):
            raise UserError(f"mesh.rules: {rule} does not fit {name} of shape {shape} on mesh {dict(mesh.shape)}.")
        return Placement(rule, PartitionSpec(*axes))
    return Placement("no rule", PartitionSpec())


def _largest(shape: tuple[int, ...], min_size: int, ways: int) -> PartitionSpec:
    fits = [i for i, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or not fits or np.prod(shape) < min_size:
        return PartitionSpec()
    chosen = max(fits, key=lambda i: shape[i])
    return PartitionSpec(*(["fsdp" if i == chosen else None for i in range(len(shape))]))


def shardings(params: Any, layout: Layout, mesh: Mesh, stacks: Mapping[str, int]) -> Any:
    """A tree of shardings for the live `params`; the layers of a scanned group must agree on their rule."""

    def one(name: str, leaf) -> NamedSharding:
        names = tree.per_layer_names(name, leaf.shape, stacks)
        if names is None:
            return NamedSharding(mesh, place(name, leaf.shape, layout, mesh).spec)
        placements = {place(n, leaf.shape[1:], layout, mesh) for n in names}
        if len(placements) > 1:
            raise UserError(f"mesh.rules split the scanned layers of {name}; use one rule for all, or scan=False.")
        return NamedSharding(mesh, PartitionSpec(None, *placements.pop().spec))

    return tree.map_with_name(one, params)


def follow(state: Any, params: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer state: what has a parameter's name and shape lies with it, the rest is replicated."""
    known = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(tree.flatten(params).items(), jax.tree.leaves(params_shardings))
    }

    def one(name: str, leaf) -> NamedSharding:
        parts = name.split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return tree.map_with_name(one, state)


def explain(params: Any, layout: Layout, mesh: Mesh, stacks: Mapping[str, int]) -> list[str]:
    """One line a per-layer parameter: name, shape, spec, the rule that matched."""
    out = []
    for name, leaf in tree.flatten(tree.unstack(params, stacks)).items():
        placement = place(name, leaf.shape, layout, mesh)
        out.append(f"{name}  {tuple(leaf.shape)}  {tuple(placement.spec)}  {placement.rule}")
    return out


# Batches


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, in order.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    ways = batch_devices(mesh)
    if batch_size % ways:
        near = sorted({max(1, batch_size // ways) * ways, -(-batch_size // ways) * ways})
        raise UserError(
            f"batch_size={batch_size} is not divisible by the {ways} devices of the batch axes (data x fsdp); "
            f"the nearest that are: {' or '.join(map(str, near))}."
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def put(batch: Mapping[str, np.ndarray], rows: np.ndarray, batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from the rows that this process holds (`local_rows`)."""
    sharding = batch_sharding(mesh)

    def one(local: np.ndarray) -> jax.Array:
        shape = (batch_size, *local.shape[1:])
        if len(rows) == batch_size:
            return jax.device_put(local, sharding)
        pick = lambda index: local[np.searchsorted(rows, np.arange(batch_size)[index[0]])]
        return jax.make_array_from_callback(shape, sharding, pick)

    return {name: one(np.asarray(value)) for name, value in batch.items()}


def gather(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array as numpy, on every process."""
    return np.asarray(jax.device_put(x, replicated(mesh)))
