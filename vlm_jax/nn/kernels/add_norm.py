"""Residual sum and LayerNorm in one pass over memory: `x + y`, and its norm."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from vlm_jax.nn.kernels.geometry import DTYPES, LANES
from vlm_jax.nn.kernels.varying import same_type

# Elements of one operand in a grid step: a few hundred KiB, so that a step is longer than its overhead.
BLOCK = 2**18
# Tokens that are worked on at once. More hide the latency of sums along lanes, and spill registers: 8, 16, 32 and 64
# take 60, 45, 38 and 37 thousand cycles backward on a v5e (32 x 200 x 768).
ROWS = 64


@dataclasses.dataclass(frozen=True)
class Options:
    epsilon: float
    interpret: Any
    with_sum: bool = True
    y_bias: bool = False


def add_layer_norm(
    x: Float[Array, "*batch dim"],
    y: Float[Array, "*batch dim"] | None,
    scale: Float[Array, " dim"],
    bias: Float[Array, " dim"],
    y_bias: Float[Array, " dim"] | None = None,
    *,
    epsilon: float,
    interpret: Any = False,
    with_sum: bool = True,
) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch dim"]] | Float[Array, "*batch dim"]:
    """`(x + y, LayerNorm(x + y))` in the dtype of `x`, or the norm alone; `y` may be None.

    The sum is rounded to that dtype before the norm, as by an addition of its own (XLA may keep it unrounded where the
    plain formula runs). Statistics are f32, and the
    variance is E[z^2] - E[z]^2 (one pass), never below 0. `scale` and `bias` are cast to f32, and their gradients are
    f32 sums. On a TPU it is one kernel forward and one backward, for widths that are multiples of 128; the backward
    computes the statistics again. Anywhere else it is the plain formula.

    A program over several devices must call it inside `jax.shard_map`.

    Args:
      y_bias: what was added to each row of `y`, for its gradient alone (see `vlm_jax.nn.kernels.attention`).
      interpret: as for `vlm_jax.nn.kernels.attention`.
      with_sum: where nobody reads the sum, its cotangent need not be read either.
    """
    scale, bias = scale.astype(jnp.float32), bias.astype(jnp.float32)
    y_bias = None if y_bias is None else y_bias.astype(jnp.float32)
    given = {"x": x, "scale": scale, "bias": bias, "y": y, "y_bias": y_bias}
    given = {name: value for name, value in given.items() if value is not None}
    operands = dict(zip(given, same_type(list(given.values()))[0]))
    order = (operands.get(name) for name in ("x", "scale", "bias", "y", "y_bias"))
    return _add_norm(*order, Options(epsilon, interpret, with_sum, y_bias is not None))


def plain_add_layer_norm(
    x: Array, scale: Array, bias: Array, y: Array | None, *, epsilon: float
) -> tuple[Array, Array]:
    """The formula. What is summed along the last axis is f32."""
    z = x if y is None else x + y
    normed, _ = _normed(z.astype(jnp.float32), epsilon)
    return z, (normed * scale + bias).astype(x.dtype)


def _normed(z: Array, epsilon: float) -> tuple[Array, Array]:
    """(z - mean) / deviation, and 1 / deviation, along the last axis."""
    mean = jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(z * z, axis=-1, keepdims=True) - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    return (z - mean) * inverse, inverse


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _add_norm(x, scale, bias, y, y_bias, options):
    return _add_norm_forward(x, scale, bias, y, y_bias, options)[0]


def _add_norm_forward(x, scale, bias, y, y_bias, options):
    z, out = _forward(x, scale, bias, y, options)
    return (z, out) if options.with_sum else out, (z, scale, y is None)


def _add_norm_backward(options, residuals, bars):
    z, scale, alone = residuals
    bars = bars if options.with_sum else (None, bars)
    x_bar, scale_bar, bias_bar, *y_bias_bar = _backward(z, scale, *bars, options)
    return x_bar, scale_bar, bias_bar, None if alone else x_bar, y_bias_bar[0] if options.y_bias else None


_add_norm.defvjp(_add_norm_forward, _add_norm_backward)


@functools.partial(jax.jit, static_argnums=4)
def _forward(x, scale, bias, y, options):
    def kernel(x, scale, bias, y):
        return forward([x] if y is None else [x, y], [scale, bias], options)

    plain = functools.partial(plain_add_layer_norm, epsilon=options.epsilon)
    return _choose(kernel, plain, options, x, scale, bias, y)


@functools.partial(jax.jit, static_argnums=4)
def _backward(z, scale, z_bar, out_bar, options):
    def plain(z, scale, z_bar, out_bar):
        wide, bar = z.astype(jnp.float32), out_bar.astype(jnp.float32)
        norm = lambda z, scale, bias: _normed(z, options.epsilon)[0] * scale + bias
        branch, scale_bar, bias_bar = jax.vjp(norm, wide, scale, jnp.zeros_like(scale))[1](bar)
        x_bar = branch if z_bar is None else branch + z_bar.astype(jnp.float32)
        rows = tuple(range(x_bar.ndim - 1))
        return x_bar.astype(z.dtype), scale_bar, bias_bar, *([x_bar.sum(axis=rows)] if options.y_bias else [])

    def kernel(z, scale, z_bar, out_bar):
        return backward([z, out_bar] if z_bar is None else [z, out_bar, z_bar], [scale], options)

    return _choose(kernel, plain, options, z, scale, z_bar, out_bar)


def _choose(kernel, plain, options: Options, *operands):
    x = operands[0]
    if options.interpret:
        return kernel(*operands)
    if x.dtype not in DTYPES or x.shape[-1] % LANES or x.size == 0 or _block(x.shape) is None:
        return plain(*operands)
    return lax.platform_dependent(*operands, tpu=kernel, default=plain)


def _block(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Images and tokens of one grid step, or None where the number of tokens is large and has no fit divisor."""
    images, time, width = _three(shape)
    if time * width > BLOCK:
        fits = [n for n in range(8, BLOCK // width + 1, 8) if time % n == 0]
        return (1, max(fits)) if fits else (1, time) if time * width <= 4 * BLOCK else None
    return max(n for n in range(1, BLOCK // (time * width) + 1) if images % n == 0), time


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[images, tokens, width]. Tokens stay an axis of their own: merging it into another would move the array."""
    *images, time, width = (1, *shape) if len(shape) > 1 else (1, 1, *shape)
    return math.prod(images), time, width


def _pieces(images: int, time: int, body: Callable, carry: Any) -> Any:
    """`body(image, rows, carry)` over every piece of `ROWS` tokens of every image, and over what is left of it."""
    whole, rest = divmod(time, ROWS)

    def image(b, carry):
        if whole:
            piece = lambda i, carry: body(b, pl.ds(pl.multiple_of(i * ROWS, ROWS), ROWS), carry)
            carry = lax.fori_loop(0, whole, piece, carry)
        return body(b, pl.ds(whole * ROWS, rest), carry) if rest else carry

    return lax.fori_loop(0, images, image, carry)


def _forward_kernel(x_ref: Any, *rest: Any, epsilon: float) -> None:
    *y_ref, scale_ref, bias_ref = rest[: len(rest) // 2 + 1]
    *sum_ref, out_ref = rest[len(rest) // 2 + 1 :]

    def piece(b, rows, _):
        z = x_ref[b, rows].astype(jnp.float32)
        if y_ref:
            total = (z + y_ref[0][b, rows].astype(jnp.float32)).astype(x_ref.dtype)
            sum_ref[0][b, rows] = total
            z = total.astype(jnp.float32)
        out_ref[b, rows] = (_normed(z, epsilon)[0] * scale_ref[...] + bias_ref[...]).astype(out_ref.dtype)

    _pieces(*x_ref.shape[:2], piece, None)


def _backward_kernel(z_ref: Any, out_bar_ref: Any, *rest: Any, epsilon: float) -> None:
    """`sums_ref` [1, 2 or 3, 8, width]: what is left to add up for the gradients of scale, bias and `y_bias`."""
    *z_bar_ref, scale_ref, x_bar_ref, sums_ref = rest
    width = z_ref.shape[-1]

    def piece(b, rows, sums):
        normed, inverse = _normed(z_ref[b, rows].astype(jnp.float32), epsilon)
        out_bar = out_bar_ref[b, rows].astype(jnp.float32)
        normed_bar = out_bar * scale_ref[...]
        mean = jnp.mean(normed_bar, axis=-1, keepdims=True)
        slope = jnp.mean(normed_bar * normed, axis=-1, keepdims=True)
        x_bar = (normed_bar - mean - normed * slope) * inverse
        if z_bar_ref:
            x_bar = x_bar + z_bar_ref[0][b, rows].astype(jnp.float32)
        x_bar_ref[b, rows] = x_bar.astype(x_bar_ref.dtype)
        return [total + eighths(part) for total, part in zip(sums, (out_bar * normed, out_bar, x_bar))]

    zeros = jnp.zeros((8, width), jnp.float32)
    for i, total in enumerate(_pieces(*z_ref.shape[:2], piece, [zeros] * sums_ref.shape[1])):
        sums_ref[0, i] = total


def eighths(x: Array) -> Array:
    """[rows, width] -> [8, width] with the same sum over rows."""
    missing = -x.shape[0] % 8
    if missing:
        x = jnp.concatenate([x, jnp.zeros((missing, x.shape[1]), x.dtype)])
    return x.reshape(-1, 8, x.shape[1]).sum(axis=0)


def _call(stage: str, kernel: Any, arrays: list, vectors: list, outs: list[str], options: Options) -> list[Array]:
    """`arrays` have one shape, `vectors` its width. `outs`: "like" an array, or "sums"."""
    operands, kind = same_type([*arrays, *vectors])
    x = operands[0]
    images, time, width = _three(x.shape)
    step_images, step_time = _block(x.shape)
    grid = (images // step_images, time // step_time)
    array = pl.BlockSpec((step_images, step_time, width), lambda b, t: (b, t, 0))
    vector = pl.BlockSpec((1, width), lambda b, t: (0, 0))
    kinds = 2 + options.y_bias
    sums = pl.BlockSpec((1, kinds, 8, width), lambda b, t: (b * grid[1] + t, 0, 0, 0))
    shapes = {"like": ((images, time, width), x.dtype), "sums": ((math.prod(grid), kinds, 8, width), jnp.float32)}
    results = pl.pallas_call(
        functools.partial(kernel, epsilon=options.epsilon),
        grid=grid,
        in_specs=[array] * len(arrays) + [vector] * len(vectors),
        out_specs=[{"like": array, "sums": sums}[out] for out in outs],
        out_shape=[jax.ShapeDtypeStruct(*shapes[out], manual_axis_type=kind) for out in outs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=32 * 2**20),
        cost_estimate=pl.CostEstimate(
            flops=16 * x.size,
            transcendentals=x.size // width,
            bytes_accessed=x.size * x.dtype.itemsize * (len(arrays) + outs.count("like")),
        ),
        name=f"add_norm_{stage}_b{images}_t{time}_d{width}" + "_bias" * (options.y_bias and stage == "backward"),
        interpret=options.interpret,
    )(
        *(v.reshape(images, time, width) for v in operands[: len(arrays)]),
        *(v.reshape(1, width) for v in operands[len(arrays) :]),
    )
    return [r.reshape(x.shape) if out == "like" else r for r, out in zip(results, outs)]


def forward(arrays: list[Array], vectors: list[Array], options: Options) -> tuple[Array, Array]:
    """The kernel. `arrays`: x, or x and y; `vectors`: scale and bias."""
    outs = ["like"] * len(arrays)
    results = _call("forward", _forward_kernel, arrays, vectors, outs, options)
    return results[0] if len(arrays) > 1 else arrays[0], results[-1]


def backward(arrays: list[Array], vectors: list[Array], options: Options) -> tuple[Array, ...]:
    """The kernel. `arrays`: the sum, the cotangent of the result, and that of the sum if any; `vectors`: scale."""
    x_bar, sums = _call("backward", _backward_kernel, arrays, vectors, ["like", "sums"], options)
    return x_bar, *sums.sum(axis=(0, 2))
