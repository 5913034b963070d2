"""Whole-image self-attention as a Pallas TPU kernel, on the fused matmul output `[query | key | value]` as it lies.

One grid step holds all tokens of an image (of several short texts), so the softmax needs no running statistics. Scores
are kept as [keys, queries]: then maximum, sum and normalisation work down the rows, which a vector unit does at full
rate, and one operand of the whole backward is transposed instead of three. Two heads of 64 share a register of 128
lanes; the second factor of a product is zeroed outside the head, which costs nothing as the matrix unit contracts 128
lanes at a time anyhow. The row of ones under the values makes the matrix unit add up the softmax.

The order of the program is that of a pipeline: the products of the heads after and before stand around the softmax of
each, because the compiler's scheduler looks only some hundred instructions ahead.

The backward reads `out` and the log-sum-exp (f32, a hundredth of `qkv`) and computes the probabilities again; `out` is
kept for the output projection anyhow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from vlm_jax.nn.kernels.add_norm import eighths
from vlm_jax.nn.kernels.geometry import LANES, Geometry
from vlm_jax.nn.kernels.varying import same_type

HIDDEN = -1e30  # a score that no real one comes near; twice it is still finite


class Stage(NamedTuple):
    """One head's work: products, then elementwise, then the products that use it."""

    scores: Callable[[], Any]
    softmax: Callable[[Any], Any]
    finish: Callable[[Any], None]


def pipeline(heads: Sequence[Stage]) -> None:
    """Emits each head's softmax between the scores of the head after the next and the last products of the previous."""
    scores, weights = {}, {}
    for i in range(-2, len(heads)):
        if i + 2 < len(heads):
            scores[i + 2] = heads[i + 2].scores()
        if i > 0:
            heads[i - 1].finish(weights.pop(i - 1))
        if i >= 0:
            weights[i] = heads[i].softmax(scores.pop(i))
    heads[-1].finish(weights.pop(len(heads) - 1))


def _dot(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract_a,), (contract_b,)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _loop(n: int, body: Callable[[Any], None]) -> None:
    if n == 1:
        body(0)
    else:
        lax.fori_loop(0, n, lambda i, _: body(i), None)


def _span(start: Any, size: int, multiple: int) -> Any:
    return pl.ds(start if isinstance(start, int) else pl.multiple_of(start, multiple), size)


def _transposed(x: Array, head_dim: int) -> Array:
    """[lanes, time]. Heads that start within a packed pair of bf16 rows are sliced in f32."""
    return x.T if x.dtype == jnp.float32 or head_dim % 16 == 0 else x.astype(jnp.float32).T


def _head(x: Array, j: int, geometry: Geometry, dtype: Any) -> Array:
    """The rows of head `j` out of a transposed group: [head_dim, time]."""
    d = geometry.head_dim
    return x[j * d : (j + 1) * d].astype(dtype)


def _only(x: Array, j: int, geometry: Geometry) -> Array:
    """The window of head `j` out of a group, zero in the lanes of its neighbours: [time, window]."""
    start, stop = geometry.window(j)
    if stop - start == geometry.head_dim:
        return x[:, start:stop]
    lane = lax.broadcasted_iota(jnp.int32, (1, stop - start), 1) + start
    first = j * geometry.head_dim
    return jnp.where((lane >= first) & (lane < first + geometry.head_dim), x[:, start:stop], 0).astype(x.dtype)


def _write_bias(bias_ref: Any, query_ids: Any, key_ids: Any, row: Any, geometry: Geometry) -> None:
    """`bias_ref[tile]` [keys, queries]: 0 where a query may see a key, else `HIDDEN`."""
    g = geometry

    def one(i):
        key = lax.broadcasted_iota(jnp.int32, (g.time, g.tile), 0)
        seen = key < g.keys
        if g.causal:
            seen &= key <= lax.broadcasted_iota(jnp.int32, (g.time, g.tile), 1) + i * g.tile
        if query_ids is not None:
            seen &= key_ids[row][:, :1] == query_ids[row, i][:1]
        bias_ref[i] = jnp.where(seen, 0.0, HIDDEN)

    _loop(g.tiles, one)


def _forward_kernel(*refs: Any, geometry: Geometry) -> None:
    g, chunk = geometry, geometry.chunk
    refs = list(refs)
    qkv_ref = refs.pop(0)
    query_ids, key_ids = (refs.pop(0), refs.pop(0)) if g.masked else (None, None)
    out_ref, stats_ref = refs.pop(0), refs.pop(0)
    bias_ref = refs.pop(0) if g.biased else None
    dtype, to_log2 = qkv_ref.dtype, g.scale * math.log2(math.e)

    def heads(row: Any, i: Any, group: Any) -> list[Stage]:
        lanes = lambda section: _span(section * g.dim + group * g.lanes, g.lanes, LANES)
        queries = _span(i * g.tile, g.tile, 8)
        query, key = qkv_ref[row, queries, lanes(0)], qkv_ref[row, :, lanes(1)]
        shared: dict[str, Array] = {}
        outs: list[Array] = []

        def stage(j: int) -> Stage:
            def scores():
                if j == 0:
                    shared["value"] = _transposed(qkv_ref[row, :, lanes(2)], g.head_dim)
                start, stop = g.window(j)
                s = _dot(key[:, start:stop], _only(query, j, g), 1, 1)
                return s if bias_ref is None else s + bias_ref[i]

            def softmax(s):
                top = jnp.max(s, axis=0, keepdims=True)
                if g.biased:
                    top = jnp.maximum(top, HIDDEN / 2)
                return top, jnp.exp2((s - top) * to_log2).astype(dtype)

            def finish(weights):
                top, p = weights
                value = jnp.concatenate([_head(shared["value"], j, g, dtype), jnp.ones((16, g.time), dtype)])
                sums = _dot(value, p, 1, 0)
                total = sums[g.head_dim : g.head_dim + 1]
                if g.biased:
                    total = jnp.where(total > 0, total, 1.0)
                outs.append(sums[: g.head_dim] * (1 / total))
                stats_ref[row, i, pl.ds(group * g.heads_of_group + j, 1), :] = top + jnp.log2(total) * (1 / to_log2)
                if j == g.heads_of_group - 1:
                    out_ref[row, queries, lanes(0)] = jnp.concatenate(outs).astype(dtype).T

            return Stage(scores, softmax, finish)

        return [stage(j) for j in range(g.heads_of_group)]

    def one_row(row):
        if bias_ref is not None:
            _write_bias(bias_ref, query_ids, key_ids, row, g)
        _loop(
            g.tiles,
            lambda i: _loop(
                g.groups // chunk, lambda n: pipeline([s for c in range(chunk) for s in heads(row, i, n * chunk + c)])
            ),
        )

    _loop(g.rows, one_row)


def _row_sums(out: Array, out_bar: Array, geometry: Geometry) -> Array:
    """Per head of a group, the sum over its lanes of `out * out_bar`: [16, queries], by the matrix unit.

    A bf16 factor is exact in two terms to 2^-17 of the largest product.
    """
    g = geometry
    product = out.astype(jnp.float32) * out_bar.astype(jnp.float32)
    head = lax.broadcasted_iota(jnp.int32, (16, g.lanes), 0) * g.head_dim
    lane = lax.broadcasted_iota(jnp.int32, (16, g.lanes), 1)
    ones = jnp.where((lane >= head) & (lane < head + g.head_dim), 1, 0).astype(out.dtype)
    if out.dtype == jnp.float32:
        return _dot(ones, product, 1, 1)
    high = product.astype(out.dtype)
    low = (product - high.astype(jnp.float32)).astype(out.dtype)
    return _dot(ones, high, 1, 1) + _dot(ones, low, 1, 1)


def _backward_kernel(*refs: Any, geometry: Geometry) -> None:
    g, chunk = geometry, geometry.chunk
    refs = list(refs)
    qkv_ref, out_ref, out_bar_ref, stats_ref = (refs.pop(0) for _ in range(4))
    query_ids, key_ids = (refs.pop(0), refs.pop(0)) if g.masked else (None, None)
    qkv_bar_ref = refs.pop(0)
    bias_bar_ref = refs.pop(0) if g.bias_bar else None
    bias_ref = refs.pop(0) if g.biased else None
    sums_ref = refs.pop(0) if g.tiles > 1 else None
    # A narrow head's gradients have fewer lanes than keys: as [head_dim, keys] the matrix unit has less to stream.
    wide = g.head_dim % LANES == 0
    flip = (lambda x: x) if wide else (lambda x: x.T)
    dtype, to_log2 = qkv_ref.dtype, g.scale * math.log2(math.e)

    def write(row: Any, tokens: Any, lanes: Any, bar: Array) -> None:
        qkv_bar_ref[row, tokens, lanes] = bar
        if bias_bar_ref is not None:
            bias_bar_ref[row, :, lanes] += eighths(bar.astype(jnp.float32)).sum(axis=0, keepdims=True)

    def heads(row: Any, i: Any, group: Any, slot: int) -> list[Stage]:
        lanes = lambda section: _span(section * g.dim + group * g.lanes, g.lanes, LANES)
        queries = _span(i * g.tile, g.tile, 8)
        query, out_bar = qkv_ref[row, queries, lanes(0)], out_bar_ref[row, queries, lanes(0)]
        key, value = qkv_ref[row, :, lanes(1)], qkv_ref[row, :, lanes(2)]
        shared: dict[str, Array] = {}
        bars: list[tuple[Array, Array, Array]] = []

        def stage(j: int) -> Stage:
            def scores():
                if j == 0:
                    shared["sums"] = _row_sums(out_ref[row, queries, lanes(0)], out_bar, g)
                    shared["key"] = _transposed(key, g.head_dim)
                    if not wide:
                        shared["query"], shared["out_bar"] = (_transposed(x, g.head_dim) for x in (query, out_bar))
                start, stop = g.window(j)
                s = _dot(key[:, start:stop], _only(query, j, g), 1, 1)
                s = s if bias_ref is None else s + bias_ref[i]
                return s, _dot(value[:, start:stop], _only(out_bar, j, g), 1, 1)

            def softmax(products):
                s, p_bar = products
                p = jnp.exp2((s - stats_ref[row, i, pl.ds(group * g.heads_of_group + j, 1), :]) * to_log2)
                return p.astype(dtype), (p * (p_bar - shared["sums"][j : j + 1])).astype(dtype)

            def finish(weights):
                p, s_bar = weights
                head = lambda name: _head(shared[name], j, g, dtype)
                query_bar = _dot(head("key"), s_bar, 1, 0)
                if wide:
                    bars.append((query_bar, _dot(s_bar, query, 1, 0), _dot(p, out_bar, 1, 0)))
                else:
                    bars.append((query_bar, _dot(head("query"), s_bar, 1, 1), _dot(head("out_bar"), p, 1, 1)))
                if j == g.heads_of_group - 1:
                    query_bar, key_bar, value_bar = (jnp.concatenate(x) for x in zip(*bars))
                    write(row, queries, lanes(0), (query_bar * g.scale).astype(dtype).T)
                    if sums_ref is None:
                        write(row, slice(None), lanes(1), flip((key_bar * g.scale).astype(dtype)))
                        write(row, slice(None), lanes(2), flip(value_bar.astype(dtype)))
                    else:
                        sums_ref[slot, 0] += key_bar
                        sums_ref[slot, 1] += value_bar

            return Stage(scores, softmax, finish)

        return [stage(j) for j in range(g.heads_of_group)]

    def one_chunk(row, n):
        if sums_ref is not None:
            sums_ref[...] = jnp.zeros(sums_ref.shape, sums_ref.dtype)
        _loop(g.tiles, lambda i: pipeline([s for c in range(chunk) for s in heads(row, i, n * chunk + c, c)]))
        for c in range(chunk if sums_ref is not None else 0):
            start = (n * chunk + c) * g.lanes
            key_lanes, value_lanes = (_span(section * g.dim + start, g.lanes, LANES) for section in (1, 2))
            write(row, slice(None), key_lanes, flip((sums_ref[c, 0] * g.scale).astype(dtype)))
            write(row, slice(None), value_lanes, flip(sums_ref[c, 1].astype(dtype)))

    def one_row(row):
        if bias_ref is not None:
            _write_bias(bias_ref, query_ids, key_ids, row, g)
        if bias_bar_ref is not None:
            bias_bar_ref[row] = jnp.zeros(bias_bar_ref.shape[1:], jnp.float32)
        _loop(g.groups // chunk, functools.partial(one_chunk, row))

    _loop(g.rows, one_row)


def _block(rows: int, *shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((rows, *shape), lambda step: (step, *(0,) * len(shape)))


def _call(
    kernel: Any,
    name: str,
    operands: Sequence[Array],
    outs: Sequence[Any],
    scratch: Sequence[Any],
    g: Geometry,
    *,
    products: int,
    interpret: Any,
) -> Any:
    operands, kind = same_type(operands)
    shapes = [jax.ShapeDtypeStruct((g.batch, *shape), dtype, manual_axis_type=kind) for shape, dtype in outs]
    moved = sum(x.size * x.dtype.itemsize for x in operands) + sum(
        math.prod(s.shape) * s.dtype.itemsize for s in shapes
    )
    return pl.pallas_call(
        functools.partial(kernel, geometry=g),
        grid=(g.batch // g.rows,),
        in_specs=[_block(g.rows, *x.shape[1:]) for x in operands],
        out_specs=[_block(g.rows, *shape) for shape, _ in outs],
        out_shape=shapes,
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=max(16 * 2**20, g.vmem_bytes() * 5 // 4)
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * g.flops, transcendentals=g.batch * g.num_heads * g.time**2, bytes_accessed=moved
        ),
        name=name,
        interpret=interpret,
    )(*operands)


def kernel_name(stage: str, g: Geometry) -> str:
    """`attention_forward_b32_t200_h12x64_k196_causal_masked`: all that the kernel depends on, but the dtype."""
    options = "".join(f"_{name}" for name in ("causal", "masked") if getattr(g, name)) + "_bias" * (
        g.bias_bar and stage == "backward"
    )
    return f"attention_{stage}_b{g.batch}_t{g.time}_h{g.num_heads}x{g.head_dim}_k{g.keys}{options}"


def _scratch(g: Geometry) -> list[Any]:
    return [pltpu.VMEM((g.tiles, g.time, g.tile), jnp.float32)] if g.biased else []


def forward(qkv: Array, ids: Sequence[Array], g: Geometry, *, interpret: Any) -> Any:
    outs = [((g.time, g.dim), qkv.dtype), (g.statistics, jnp.float32)]
    return _call(
        _forward_kernel, kernel_name("forward", g), [qkv, *ids], outs, _scratch(g), g, products=2, interpret=interpret
    )


def backward(
    qkv: Array, out: Array, out_bar: Array, stats: Array, ids: Sequence[Array], g: Geometry, *, interpret: Any
) -> list[Array]:
    """The cotangent of `qkv`, and where the geometry asks for it that of a bias, [batch, 1, 3 dim] in f32."""
    scratch = _scratch(g)
    if g.tiles > 1:
        shape = (g.time, g.lanes) if g.head_dim % LANES == 0 else (g.lanes, g.time)
        scratch.append(pltpu.VMEM((g.chunk, 2, *shape), jnp.float32))
    outs = [((g.time, 3 * g.dim), qkv.dtype)] + [((1, 3 * g.dim), jnp.float32)] * g.bias_bar
    return _call(
        _backward_kernel,
        kernel_name("backward", g),
        [qkv, out, out_bar, stats, *ids],
        outs,
        scratch,
        g,
        products=5,
        interpret=interpret,
    )
