"""The device mesh: axes `data`, `fsdp`, `tensor`, and batches by rows. Parameters: `vlm_jax.partition`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vlm_jax.errors import UserError, closest
from vlm_jax.nn.shard import BATCH_AXES
from vlm_jax.partition import explain, follow, shardings
from vlm_jax.ring import ring_order

__all__ = ["AXES", "BATCH_AXES", "Layout", "explain", "follow", "shardings"]

AXES = ("data", "fsdp", "tensor")
# Ways that `fsdp` splits at most where it is free. Over whole slices of most shapes, and of v5p already over 64 chips,
# the compiler for TPUs (libtpu 0.0.42) sums whole gradients on every chip and cuts them then, instead of scattering.
MOST_WAYS = 32


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many devices each axis has, and the rules of partition.

    -1 is all devices that are left. Where `data` and `fsdp` both are, `fsdp` has the greatest common divisor of those
    devices and 32, and `data` the rest: 8 devices hold parameters once, 256 of them eight times.

    A rule is (regular expression over the whole per-layer name, spec); the first that matches counts. A spec is
    `replicate`, `fsdp` (the largest dimension that the axis divides, where the array has at least `min_size`
    elements), or one axis name a dimension, `-` for none: `-,tensor`. What no rule matches goes by what it is:
    see `vlm_jax.partition.LOGICAL_AXES`, which shard over `fsdp` and `tensor` what has `min_size` elements.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, str], ...] = ()
    min_size: int = 2**14

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        several = len(free) > 1 and free != ["data", "fsdp"]
        if several or any(size < 1 and size != -1 for size in sizes.values()):
            raise UserError(
                f"mesh {sizes}: sizes are positive, or -1 (all devices that are left) for one axis, or data and fsdp."
            )
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

    def sizes(self, devices: int, which: str = "that there are") -> dict[str, int]:
        """axis -> devices along it, of `devices` in all; `which` is what an error calls them.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        given = {axis: getattr(self, axis) for axis in AXES}
        left, over = divmod(devices, math.prod(size for size in given.values() if size != -1))
        sizes = dict(given)
        if self.fsdp == -1:
            sizes["fsdp"] = math.gcd(left, MOST_WAYS) if self.data == -1 else left
            left //= max(1, sizes["fsdp"])
        sizes |= {axis: left for axis in ("data", "tensor") if given[axis] == -1}
        if over or math.prod(sizes.values()) != devices:
            named = " x ".join(f"{axis}={size}" for axis, size in given.items())
            valid = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
            raise UserError(
                f"mesh {named} does not make the {devices} device(s) {which}; set one axis to -1, and the others to "
                f"divisors: {valid}."
            )
        return sizes

    def make(self, devices: Sequence[Any], group: int = 1) -> Mesh:
        """The mesh over `devices`, in `ring_order` where they all lie along one axis, else in the order given.

        The ring of a loss goes over `data` and `fsdp` flattened. Where more axes than one are split, collectives
        run over parts of the machine, and the compiler for TPU v5e dies of parts that are no rectangles (all-gather
        over `fsdp=16` on 16x16 chips in ring order, libtpu 0.0.42). In jax's own order such meshes compile.

        Args:
          group: consecutive devices that a loss gathers among; see `ring_order`.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = list(self.sizes(len(devices)).values())
        ordered = ring_order(devices, group) if len(devices) in sizes else devices
        return Mesh(np.asarray(ordered).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


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
        if sharding.is_fully_addressable:
            return jax.device_put(local, sharding)
        pick = lambda index: local[np.searchsorted(rows, np.arange(batch_size)[index[0]])]
        return jax.make_array_from_callback(shape, sharding, pick)

    return {name: one(np.asarray(value)) for name, value in batch.items()}


def gather(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """The whole of a sharded array as numpy, on every process."""
    return np.asarray(jax.device_put(x, replicated(mesh)))
