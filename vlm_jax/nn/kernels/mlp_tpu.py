"""A perceptron of two layers on a TPU, in one pass over its tokens: hidden activations never reach main memory.

Both matrices stay in vector memory, and so do their gradients, which are summed there over all tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.kernels.add_norm import eighths
from vlm_jax.nn.kernels.geometry import DTYPES, LANES

# Most tokens of one grid step: weights pass through the matrix unit once for each, and a kernel compiles as long as its
# step is. 784 and 392 take 512 and 556 thousand cycles forward on a v6e (128 images of 196, 768 x 3,072), and backward
# 1,426 and 1,451, which compile in 16 and 6 s.
TOKENS = {"forward": 1024, "backward": 512}
# Most hidden units that are worked on at once; a loop goes over them.
COLUMNS = 768
# Of the vector memory; the compiler needs some for itself.
SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the tokens of a batch are cut up: so many whole sequences a grid step, or a part of one.

    Each core sums gradients of weights for itself. `casts`: matrices come in f32, and are cast by the kernel.
    """

    batch: int
    time: int
    width: int
    hidden: int
    itemsize: int
    cores: int
    casts: bool
    most: int

    @property
    def sequences(self) -> int:
        most = max(1, self.most // self.time)
        return max(n for n in range(1, most + 1) if self.batch % (n * self.cores) == 0)

    @property
    def tokens(self) -> int:
        """Of each sequence in a grid step; 0 where a long one has no fit divisor."""
        if self.time <= 2 * self.most:
            return self.time
        return max((n for n in range(LANES, self.most + 1, 16) if self.time % n == 0), default=0)

    @property
    def rows(self) -> int:
        """Of a grid step, with those that fill the last register."""
        return -(-self.sequences * self.tokens // 16) * 16

    @property
    def steps(self) -> int:
        """Of each core."""
        return self.batch * self.time // (self.sequences * self.tokens * self.cores)

    @property
    def columns(self) -> int:
        """Hidden units that are worked on at once."""
        return max(n for n in range(LANES, COLUMNS + 1, LANES) if self.hidden % n == 0)

    @property
    def vmem(self) -> int:
        """Bytes that the backward kernel needs: weights, their sums, blocks twice, and what is worked on."""
        weights = 2 * self.width * self.hidden * (self.itemsize + (4 if self.casts else 0) + 4)
        blocks = 8 * self.rows * self.width * self.itemsize
        return weights + blocks + 4 * self.rows * (2 * self.width + 5 * self.columns)


@dataclasses.dataclass(frozen=True)
class Options:
    """`inner`: the dtype in which the activation is computed, of what the dtype of `x` holds."""

    cut: Cut
    activation: str
    inner: str
    vmem_limit: int
    interpret: Any


def cut(
    stage: str, x: Float[Array, "batch time dim"], kernel1: Float[Array, "dim hidden"], chip: pltpu.TpuInfo
) -> Cut | None:
    """How a kernel cuts up `x` on this chip; None where it does not take it. `stage`: "forward" or "backward"."""
    (batch, time, width), hidden = x.shape, kernel1.shape[1]
    if x.dtype not in DTYPES or x.size == 0 or width % LANES or hidden % LANES:
        return None
    cores = chip.num_cores if batch % chip.num_cores == 0 else 1
    for casts in dict.fromkeys((kernel1.dtype != x.dtype, False)):
        found = Cut(batch, time, width, hidden, x.dtype.itemsize, cores, casts, TOKENS[stage])
        if found.tokens and found.vmem <= limit(chip):
            return found
    return None


def limit(chip: pltpu.TpuInfo) -> int:
    """Bytes of vector memory that a kernel may use."""
    return int(SHARE * chip.vmem_capacity_bytes)


def forward(
    x: Array, kernel1: Array, bias1: Array, kernel2: Array, bias2: Array, *, options: Options
) -> Float[Array, "batch time dim"]:
    """The kernel; see `mlp.perceptron`."""
    return _call("forward", [x], [kernel1, bias1[None], kernel2, bias2[None]], options)[0]


def backward(
    x: Array, y_bar: Array, kernel1: Array, bias1: Array, kernel2: Array, *, options: Options
) -> tuple[Array, ...]:
    """The kernel; see `mlp.perceptron_gradients`."""
    x_bar, *sums = _call("backward", [x, y_bar], [kernel1, bias1[None], kernel2], options)
    kernel1_bar, bias1_bar, kernel2_bar, bias2_bar = (s.sum(axis=0) for s in sums)
    return x_bar, kernel1_bar, bias1_bar.sum(axis=0), kernel2_bar, bias2_bar.sum(axis=0)


def _call(stage: str, arrays: list[Array], weights: list[Array], options: Options) -> list[Array]:
    c = options.cut
    backwards = stage == "backward"
    if not c.casts:
        weights = [w if w.shape[0] == 1 else w.astype(arrays[0].dtype) for w in weights]
    operands = [*arrays, *weights]
    x, kind = arrays[0], jax.typeof(arrays[0]).manual_axis_type
    parts = c.time // c.tokens

    def place(core, step):
        at = core * c.steps + step
        return (at, 0, 0) if parts == 1 else (at // parts, at % parts, 0)

    array = pl.BlockSpec((c.sequences, c.tokens, c.width), place)
    held = [pl.BlockSpec(w.shape, lambda core, step: (0, 0), pipeline_mode=pl.Buffered(1)) for w in weights]
    sums = [(c.width, c.hidden), (8, c.hidden), (c.hidden, c.width), (8, c.width)] if backwards else []
    summed = [
        pl.BlockSpec((1, *shape), lambda core, step: (core, 0, 0), pipeline_mode=pl.Buffered(1)) for shape in sums
    ]
    cast = [pltpu.VMEM(w.shape, x.dtype) for w in weights if w.shape[0] > 1] if c.casts else []
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind)]
    outs += [jax.ShapeDtypeStruct((c.cores, *shape), jnp.float32, manual_axis_type=kind) for shape in sums]
    return pl.pallas_call(
        functools.partial(_backward_kernel if backwards else _forward_kernel, options=options),
        grid=(c.cores, c.steps),
        in_specs=[array] * len(arrays) + held,
        out_specs=[array, *summed],
        out_shape=outs,
        scratch_shapes=[
            pltpu.VMEM((c.rows, c.width), jnp.float32),
            *[pltpu.VMEM((c.rows, c.width), x.dtype)] * len(arrays),
            *cast,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=options.vmem_limit
        ),
        cost_estimate=pl.CostEstimate(
            flops=(10 if backwards else 4) * math.prod(x.shape) * c.hidden,
            transcendentals=x.size // c.width * c.hidden,
            bytes_accessed=sum(v.size * v.dtype.itemsize for v in (*operands, *outs)),
        ),
        name=f"perceptron_{stage}_b{c.batch}_t{c.time}_d{c.width}x{c.hidden}_{options.activation}",
        interpret=options.interpret,
    )(*operands)


def _forward_kernel(
    x_ref: Any,
    kernel1_ref: Any,
    bias1_ref: Any,
    kernel2_ref: Any,
    bias2_ref: Any,
    y_ref: Any,
    total_ref: Any,
    rows_ref: Any,
    *cast: Any,
    options: Options,
) -> None:
    kernel1_ref, kernel2_ref = _cast([kernel1_ref, kernel2_ref], cast)
    _pack(x_ref, rows_ref)
    total_ref[...] = jnp.broadcast_to(bias2_ref[...], total_ref.shape)

    def piece(part):
        x = rows_ref[...]
        before = _dot(x, kernel1_ref[:, part], (1, 0)) + bias1_ref[:, part]
        hidden = ACTIVATIONS[options.activation](before.astype(x.dtype).astype(options.inner))
        total_ref[...] += _dot(hidden.astype(x.dtype), kernel2_ref[part], (1, 0))

    _pieces(options.cut, piece)
    _unpack(total_ref, rows_ref, y_ref)


def _backward_kernel(
    x_ref: Any, y_bar_ref: Any, kernel1_ref: Any, bias1_ref: Any, kernel2_ref: Any, *rest: Any, options: Options
) -> None:
    """Sums are those of one core so far, those of biases in eight rows that are still to be added up."""
    x_bar_ref, *sums, total_ref, rows_ref, bar_rows_ref = rest[:8]
    kernel1_sum, bias1_sum, kernel2_sum, bias2_sum = sums
    kernel1_ref, kernel2_ref = _cast([kernel1_ref, kernel2_ref], rest[8:])

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in sums:
            _fill(ref.at[0], lambda rows, like=ref: jnp.zeros((rows.size, like.shape[2]), like.dtype))

    _pack(x_ref, rows_ref)
    _pack(y_bar_ref, bar_rows_ref)
    total_ref[...] = jnp.zeros(total_ref.shape, total_ref.dtype)

    def piece(part):
        x, y_bar = rows_ref[...], bar_rows_ref[...]
        before = _dot(x, kernel1_ref[:, part], (1, 0)) + bias1_ref[:, part]
        hidden_bar = _dot(y_bar, kernel2_ref[part], (1, 1))
        before, hidden_bar = (v.astype(x.dtype).astype(options.inner) for v in (before, hidden_bar))
        hidden, pull = jax.vjp(ACTIVATIONS[options.activation], before)
        (before_bar,) = pull(hidden_bar)
        hidden, before_bar = hidden.astype(x.dtype), before_bar.astype(x.dtype)
        bias1_sum[0, :, part] += eighths(before_bar.astype(jnp.float32))
        total_ref[...] += _dot(before_bar, kernel1_ref[:, part], (1, 1))
        kernel2_sum[0, part] += _dot(hidden, y_bar, (0, 0))
        kernel1_sum[0, :, part] += _dot(x, before_bar, (0, 0))

    _pieces(options.cut, piece)
    bias2_sum[0] += eighths(bar_rows_ref[...].astype(jnp.float32))
    _unpack(total_ref, rows_ref, x_bar_ref)


def _pieces(c: Cut, piece: Callable[[Any], None]) -> None:
    """`piece(part)` for every part of the hidden units."""

    def step(i, carry):
        piece(pl.ds(pl.multiple_of(i * c.columns, LANES), c.columns))
        return carry

    lax.fori_loop(0, c.hidden // c.columns, step, None)


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    """The product that sums over these axes, in f32."""
    dims = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _cast(weights: list[Any], cast: Sequence[Any]) -> Sequence[Any]:
    """The weights in the dtype of the tokens, at the first step made from those in f32."""
    if not cast:
        return weights

    @pl.when(pl.program_id(1) == 0)
    def _():
        for wide, ref in zip(weights, cast):
            _fill(ref, lambda rows, wide=wide, ref=ref: wide[rows].astype(ref.dtype))

    return cast


def _fill(ref: Any, values: Callable[[Any], Array]) -> None:
    """Sets `ref` to `values(rows)`, a few rows at a time: a loop compiles faster than a straight program."""
    few = math.gcd(ref.shape[0], 32)

    def step(i, carry):
        rows = pl.ds(pl.multiple_of(i * few, few), few)
        ref[rows] = values(rows)
        return carry

    lax.fori_loop(0, ref.shape[0] // few, step, None)


def _pack(block_ref: Any, rows_ref: Any) -> None:
    """The sequences of a block as rows without gaps; what fills the last register is zero."""
    sequences, time, width = block_ref.shape
    for b in range(sequences):
        rows_ref[b * time : (b + 1) * time] = block_ref[b]
    rest = rows_ref.shape[0] - sequences * time
    if rest:
        rows_ref[sequences * time :] = jnp.zeros((rest, width), rows_ref.dtype)


def _unpack(total_ref: Any, rows_ref: Any, block_ref: Any) -> None:
    sequences, time, _ = block_ref.shape
    rows_ref[...] = total_ref[...].astype(rows_ref.dtype)
    for b in range(sequences):
        block_ref[b] = rows_ref[b * time : (b + 1) * time]
