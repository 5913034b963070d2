"""Names of hardware as `--plan` has them (`v5e:4x4`, `2*v6e:16x16`, `h200:8`), and what the clouds call the same."""

from __future__ import annotations

import dataclasses
import math
import re

from vlm_jax.errors import UserError, closest

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
SINGLE_HOST = 8  # chips of the largest machine with a flat slice of its own


@dataclasses.dataclass(frozen=True)
class Generation:
    """What Google calls one generation of TPU.

    Attributes:
      accelerator: the accelerator type of the Cloud TPU API before the dash.
      per_chip: what that type counts, for each chip: TensorCores on v4 and v5p, chips on the others.
      runtime: version of the Cloud TPU API's software.
      label: value of `cloud.google.com/gke-tpu-accelerator`.
      machine: machine type, of the chips of one host.
      max_chips: of one slice.
      image: family of Compute Engine images, where it has these TPUs.
    """

    accelerator: str
    per_chip: int
    runtime: str
    label: str
    machine: str
    max_chips: int
    image: str | None = None

    @property
    def flat(self) -> bool:
        """Whether slices are rectangles; else they are boxes."""
        return self.max_chips == 256


IMAGE = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
TPUS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-{}t", 4096),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", 256),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-{}t", 6144, IMAGE),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-{}t", 256, IMAGE),
}
ALIASES = {"v5": "v5p", "v5litepod": "v5e"}
NODE = 8  # GPUs of one machine; h100:32 is 4*h100:8
GPUS = ("a100", "a100-80gb", "h100", "h200", "b200", "l4")


@dataclasses.dataclass(frozen=True)
class Topology:
    """`count` slices of TPU chips, nodes of GPUs, or (`cpu:N`) N processes on this machine."""

    kind: str
    shape: tuple[int, ...]
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Topology:
        """The topology that `[COUNT*]KIND:SHAPE` names.

        Raises:
          UserError: there is none of that name; it says which there are.
        """
        match = re.fullmatch(r"(?:([1-9]\d*)\*)?([\w-]+):([1-9]\d*(?:x[1-9]\d*)*)", text)
        if not match:
            raise UserError(f"--topology={text} is none: write KIND:SHAPE or COUNT*KIND:SHAPE (v5e:4x4, 2*h100:8).")
        kind, shape = ALIASES.get(match[2], match[2]), tuple(map(int, match[3].split("x")))
        if kind not in (*TPUS, *GPUS, "cpu"):
            raise UserError(f"--topology={text}: no hardware {kind!r}; {closest(kind, [*TPUS, *GPUS, 'cpu'])}")
        count = int(match[1] or 1)
        if kind in GPUS and len(shape) == 1 and count == 1 and shape[0] > NODE and shape[0] % NODE == 0:
            count, shape = shape[0] // NODE, (NODE,)
        topology = cls(kind, shape, count)
        topology.validate(text)
        return topology

    def validate(self, text: str) -> None:
        if self.kind not in TPUS:
            if len(self.shape) > 1:
                unit = "processes" if self.kind == "cpu" else "GPUs a node"
                raise UserError(f"--topology={text}: {self.kind}:N takes one number: {unit}.")
            if self.kind == "cpu" and self.count > 1:
                raise UserError(f"--topology={text}: cpu:N is N processes on one machine; write cpu:{self.devices}.")
            if self.is_gpu and self.chips > NODE:
                raise UserError(f"--topology={text}: a node has at most {NODE} GPUs; write NODES*{self.kind}:{NODE}.")
        elif self.tpu.flat:
            if self.shape_name not in FLAT:
                raise UserError(f"--topology={text}: {self.kind} slices are {', '.join(FLAT)}.")
        elif self.shape_name not in CUBES:
            fits = (
                len(self.shape) == 3 and list(self.shape) == sorted(self.shape) and not any(n % 4 for n in self.shape)
            )
            if not fits or self.chips > self.tpu.max_chips:
                raise UserError(
                    f"--topology={text}: {self.kind} slices are {', '.join(CUBES)}, or three ascending "
                    f"multiples of 4, of at most {self.tpu.max_chips} chips (4x4x8, 8x8x8)."
                )

    def __str__(self) -> str:
        return f"{f'{self.count}*' if self.count > 1 else ''}{self.kind}:{self.shape_name}"

    @property
    def is_tpu(self) -> bool:
        return self.kind in TPUS

    @property
    def is_gpu(self) -> bool:
        return self.kind in GPUS

    @property
    def tpu(self) -> Generation:
        return TPUS[self.kind]

    @property
    def shape_name(self) -> str:
        """`4x4`: also the value of `cloud.google.com/gke-tpu-topology`."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """Of one slice or node."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.count * self.chips

    @property
    def hosts(self) -> int:
        """Machines of one slice: one up to eight chips of v5e and v6e, else four chips each."""
        alone = self.tpu.flat and self.chips <= SINGLE_HOST
        return 1 if alone else self.chips // 4

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def accelerator_type(self) -> str:
        """Of the Cloud TPU API: `v5litepod-16`, `v4-32`."""
        return f"{self.tpu.accelerator}-{self.chips * self.tpu.per_chip}"

    @property
    def machine_type(self) -> str:
        return self.tpu.machine.format(self.chips_per_host)
