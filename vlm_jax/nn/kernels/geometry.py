"""How whole-image attention is cut up for a TPU: groups of heads that fill lanes, tiles of queries, rows of a step."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

DTYPES = (jnp.bfloat16, jnp.float32)  # of activations that the kernels take
LANES = 128
MAX_TILE = 256
# Double-buffered blocks and scratch; VMEM is 128 MiB on v5e and v6e, less on older chips.
VMEM_BYTES = 48 * 2**20
# A grid step costs some hundred cycles whatever it does; short texts share one.
ROWS_OF_TOKENS = 256
# The more heads in line, the better the pipeline is filled, and the longer a kernel compiles, once for each layer that
# is unrolled. Of 12 heads of 64, 12 / 4 / 2 in line take 187 / 214 / 250 thousand cycles for 32 images on a v6e (252 /
# 283 / 329 on a v5e), forward and backward, and 12 layers compile in 1.7 / 1.5 / 1 times the shortest.
HEADS_IN_LINE = 12


def tile_of_queries(time: int) -> tuple[int, int]:
    """`(tile, padded)`: how many queries are worked on at once, and the time that is a multiple of it.

    Up to 256 tokens there is one tile, whatever their number. Beyond, the tile is the multiple of 8 that pads least,
    and of those the largest.
    """
    if time <= MAX_TILE:
        return time, time
    candidates = range(LANES, MAX_TILE + 1, 8)
    tile = min(candidates, key=lambda n: (-(-time // n) * n, -n))
    return tile, -(-time // tile) * tile


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Everything static about one attention kernel. `keys` are the first keys that count; the rest is padding."""

    batch: int
    time: int
    dim: int
    num_heads: int
    keys: int
    itemsize: int
    causal: bool = False
    masked: bool = False
    bias_bar: bool = False  # whether the backward kernel adds up the rows of its result

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def tile(self) -> int:
        return tile_of_queries(self.time)[0]

    @property
    def tiles(self) -> int:
        return self.time // self.tile

    @property
    def biased(self) -> bool:
        """Whether some query may not see some key."""
        return self.masked or self.causal or self.keys < self.time

    @property
    def lanes(self) -> int:
        """Of a group: the fewest heads that end where a register does (two of 64, one of 128, sixteen of 72)."""
        return math.lcm(self.head_dim, LANES)

    @property
    def groups(self) -> int:
        return self.dim // self.lanes

    @property
    def heads_of_group(self) -> int:
        return self.lanes // self.head_dim

    @property
    def chunk(self) -> int:
        """Groups whose heads make one straight piece of program; a loop goes over the pieces."""
        most = max(1, HEADS_IN_LINE // self.heads_of_group)
        return max(n for n in range(1, most + 1) if self.groups % n == 0)

    @property
    def rows(self) -> int:
        """Batch rows of one grid step."""
        most = max(1, ROWS_OF_TOKENS // self.time)
        return max(n for n in range(1, most + 1) if self.batch % n == 0)

    @property
    def statistics(self) -> tuple[int, int, int]:
        """Shape, per row, of the log-sum-exp: [tiles, heads padded to 8, tile]."""
        return self.tiles, -(-self.num_heads // 8) * 8, self.tile

    def window(self, head: int) -> tuple[int, int]:
        """Whole registers, as lanes of the group, that hold this head of a group."""
        start = head * self.head_dim
        return start // LANES * LANES, -(-(start + self.head_dim) // LANES) * LANES

    def vmem_bytes(self) -> int:
        """What the backward kernel needs: its blocks twice, for the next step's copies, and its scratch."""
        per_row = self.time * self.dim * self.itemsize * 8 + math.prod(self.statistics) * 4
        bias = self.time**2 * 4 if self.biased else 0
        work = 8 * self.time * max(self.tile, LANES) * 4 + 2 * self.time * self.dim * 4
        return 2 * self.rows * per_row + bias + work

    @property
    def flops(self) -> int:
        """Of one of the products [time, time, dim], for the whole batch."""
        return 2 * self.batch * self.time**2 * self.dim


def supports(time: int, dim: int, num_heads: int, itemsize: int) -> bool:
    """Whether the kernel takes this shape: `dim` fills whole registers, heads are multiples of 8, and it fits VMEM."""
    if dim % num_heads or dim % LANES or (dim // num_heads) % 8:
        return False
    padded = tile_of_queries(time)[1]
    return Geometry(1, padded, dim, num_heads, time, itemsize, masked=True).vmem_bytes() <= VMEM_BYTES
