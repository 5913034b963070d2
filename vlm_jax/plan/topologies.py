"""Machines by name (`v5e:16x16`, `2*v6e:16x16`, `h200:8`, `cpu:8`), what is known of them, devices to compile for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from vlm_jax.errors import UserError, closest

# Shapes that can be ordered; those of v4 and v5p go on in multiples of 4.
GRIDS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
BOXES = (
    "1x1x1",
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a kind of device can do. Rates are the vendors' (see docs/plan.md), of one device.

    Attributes:
      kind: as in `vlm_jax.flops.PEAK_TFLOPS`.
      clock: cycles a second, for the compiler's estimates; `clock_known` where it follows from the peak and the
        published number and size of matrix units.
      memory: bytes a second from and to HBM.
      link: bytes a second over one link in one direction. On a TPU a chip has two links an axis of its torus.
      network: bytes a second between slices or nodes, for each device; `network_known` as above.
      shapes: those that can be ordered; () for a plain number of devices.
      wraps: an axis at least so long closes to a ring.
      node: devices that links connect; beyond it goes `network`. 0: all of a slice.
      capacity: bytes of memory, where the compiler does not say what it has.
    """

    kind: str
    clock: float = 0.0
    clock_known: bool = True
    memory: float = 0.0
    link: float = 0.0
    network: float = 0.0
    network_known: bool = True
    shapes: tuple[str, ...] = ()
    largest: str = ""
    wraps: int = 0
    node: int = 0
    capacity: float = 0.0


CHIPS = {
    "v4": Chip("TPU v4", 1.05e9, True, 1228e9, 50e9, 3.125e9, False, BOXES, "12x16x16", wraps=4),
    "v5e": Chip("TPU v5e", 1.5e9, True, 819e9, 50e9, 3.125e9, True, GRIDS, "16x16", wraps=16),
    "v5p": Chip("TPU v5p", 1.75e9, True, 2765e9, 100e9, 6.25e9, True, BOXES, "16x20x28", wraps=4),
    "v6e": Chip("TPU v6e", 1.75e9, False, 1600e9, 100e9, 12.5e9, True, GRIDS, "16x16", wraps=16),
    "h200": Chip("NVIDIA H200", memory=4800e9, link=450e9, network=50e9, network_known=False, node=8, capacity=141e9),
    "h100": Chip("NVIDIA H100", memory=3350e9, link=450e9, network=50e9, network_known=False, node=8, capacity=80e9),
    "a100": Chip("NVIDIA A100", memory=2039e9, link=300e9, network=25e9, network_known=False, node=8, capacity=80e9),
    "cpu": Chip("cpu"),
}
EXAMPLES = "v5e:16x16, v6e:8x8, v4:4x4x4, v5p:4x4x8, 2*v6e:16x16, h200:8, cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine: `slices` of `shape` chips of a kind. A plain number of devices is a shape of one side."""

    name: str
    chip_name: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def platform(self) -> str:
        return "tpu" if self.chip.shapes else "cpu" if self.chip_name == "cpu" else "cuda"

    @property
    def size(self) -> int:
        return self.slices * math.prod(self.shape)


def parse(name: str) -> Topology:
    """The machine that a name means.

    Raises:
      UserError: it means none, with the valid choices.
    """
    found = re.fullmatch(r"(?:(\d+)\*)?(\w+):([\dx]+)", name.strip())
    if not found:
        raise UserError(f"--plan={name}: a topology is CHIP:SHAPE, for example {EXAMPLES}; --plan=help lists them.")
    slices, chip_name, shape = int(found[1] or 1), found[2].lower(), found[3]
    if chip_name not in CHIPS:
        raise UserError(f"--plan={name}: unknown chip {chip_name!r}; {closest(chip_name, CHIPS)}")
    chip = CHIPS[chip_name]
    sides = tuple(int(side) for side in shape.split("x") if side)
    if "x".join(map(str, sides)) != shape or not sides or min(sides) < 1 or slices < 1:
        raise UserError(f"--plan={name}: {shape!r} is no shape; {chip_name} has {_shapes(chip)}.")
    if not chip.shapes and (len(sides) > 1 or slices > 1 or (sides[0] > chip.node > 0 and sides[0] % chip.node)):
        whole = f", from {chip.node} on in nodes of {chip.node}" if chip.node else ""
        raise UserError(f"--plan={name}: {chip_name} takes a number of devices{whole}: {chip_name}:8.")
    if chip.shapes and shape not in chip.shapes and not _is_cubes(sides, chip):
        raise UserError(f"--plan={name}: {chip_name} has no shape {shape}; {_nearest(sides, chip)}")
    return Topology(name.strip(), chip_name, sides, slices)


def _is_cubes(sides: tuple[int, ...], chip: Chip) -> bool:
    """v4 and v5p join cubes of 4x4x4 up to a whole pod."""
    most = [int(side) for side in chip.largest.split("x")]
    return len(sides) == 3 == len(most) and all(s % 4 == 0 and s <= m for s, m in zip(sorted(sides), sorted(most)))


def _shapes(chip: Chip) -> str:
    if not chip.shapes:
        return "a number of devices"
    more = f", ... in multiples of 4 to {chip.largest}" if chip.shapes is BOXES else ""
    return ", ".join(chip.shapes) + more


def _nearest(sides: tuple[int, ...], chip: Chip) -> str:
    count = math.prod(sides)
    near = min(chip.shapes, key=lambda s: abs(math.log(math.prod(map(int, s.split("x"))) / count)))
    return f"did you mean {near}? valid choices: {_shapes(chip)}."


def help_text() -> str:
    """The chips, their shapes and what is needed to compile for them."""
    from vlm_jax.flops import peak_tflops

    rows = [f"  {'chip':<6}{'peak bf16':>13}  {'HBM':>9}  {'a link':>9}  shapes"]
    for name, chip in CHIPS.items():
        peak = f"{peak_tflops(chip.kind):.0f} TFLOP/s" if peak_tflops(chip.kind) else ""
        memory, link = (f"{rate / 1e9:.0f} GB/s" if rate else "" for rate in (chip.memory, chip.link))
        rows.append(f"  {name:<6}{peak:>13}  {memory:>9}  {link:>9}  {_shapes(chip)}")
    return "\n".join(
        [
            f"--plan=TOPOLOGY compiles the train step for a machine that is not here; for example {EXAMPLES}.",
            "",
            *rows,
            "",
            "  N*CHIP:SHAPE is N slices of a TPU. TPUs need libtpu, GPUs the CUDA plugin of jax, and neither a device.",
        ]
    )


# Devices


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for; they hold no arrays (those of a CPU do).

    One process describes one topology: libtpu ends the process at some second ones.

    Raises:
      UserError: the compiler is not installed; with the command that installs it.
    """

    if topology.platform == "cpu":
        return _cpu_devices(topology)
    check_installed(topology)
    if topology.platform == "cuda":
        from vlm_jax.plan import gpus

        return gpus.devices(topology)
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.shape))
    generation = {"v5p": "v5"}.get(topology.chip_name, topology.chip_name)
    options: dict[str, Any] = {}
    if topology.chip.shapes is BOXES:
        options["chip_config_name"] = "megacore"  # one device a chip, as jax shows them on these
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    with _quiet():
        described = topologies.get_topology_desc(platform="tpu", topology_name=f"{generation}:{shape}", **options)
    return list(described.devices)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libtpu writes to the process's error output about a machine that is not there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_installed(topology: Topology) -> None:
    """Raises UserError, with the command that helps, where what compiles for the topology is missing."""
    jax_version = importlib.metadata.version("jax")
    if topology.platform == "tpu" and not _installed("libtpu"):
        raise UserError(
            f"--plan={topology.name} needs libtpu, the TPU's compiler, which runs on any x86 Linux machine: "
            f"pip install 'jax[tpu]=={jax_version}'"
        )
    if topology.platform == "cuda" and not _cuda_plugin():
        raise UserError(
            f"--plan={topology.name} needs jax's CUDA plugin, which compiles without a GPU: "
            f"pip install 'jax[cuda12]=={jax_version}'"
        )


def _cuda_plugin() -> bool:
    return any(map(_installed, ("jax-cuda12-plugin", "jax-cuda13-plugin")))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cpu_devices(topology: Topology) -> list[Any]:
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", topology.size)
    except RuntimeError:  # the backend has started, with the number it was given
        pass
    found = jax.devices("cpu")
    if len(found) < topology.size:
        raise UserError(f"--plan={topology.name}: this process has {len(found)} CPU device(s); ask in a fresh one.")
    return found[: topology.size]
