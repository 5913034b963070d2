"""Self-attention by the best kernel there is for the platform that a program is compiled for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn.kernels import splash, whole_image
from vlm_jax.nn.kernels.geometry import DTYPES, LANES, Geometry, supports, tile_of_queries
from vlm_jax.nn.kernels.plain import Ids, cudnn_attention, cudnn_supports, plain_attention
from vlm_jax.nn.kernels.varying import same_type

# Tokens from which splash attention takes what the whole-image kernel does not: below, its blocks are mostly padding.
SPLASH_FROM = 512


@dataclasses.dataclass(frozen=True)
class Options:
    num_heads: int
    causal: bool
    valid: int
    bias: bool
    interpret: Any


def attention(
    qkv: Float[Array, "batch time three_dim"],
    segment_ids: Int[Array, "batch time"] | None = None,
    key_mask: Bool[Array, "batch time"] | None = None,
    bias: Float[Array, " three_dim"] | None = None,
    *,
    num_heads: int,
    causal: bool = False,
    valid: int | None = None,
    interpret: Any = False,
) -> Float[Array, "batch time dim"]:
    """Scaled dot-product self-attention over a fused projection `[query | key | value]`, each `[heads, head_dim]`.

    A query sees the keys of its own segment (`segment_ids`; 0 is padding, which sees nothing and is not seen), those
    that `key_mask` allows, the first `valid`, and with `causal` those up to itself. A query that sees no key gives
    zero, and passes no gradient.

    On a TPU this is one kernel on the activations as they lie, for widths that are multiples of 128, heads of any
    multiple of 8 (64 and 128 waste least; 72, 80, 88 or 96 are computed without padding in memory), and times whose
    activations fit the vector memory: about 1,050 tokens at width 768, 750 at 1152. Longer sequences go to splash
    attention (on one device; inside a checked `jax.shard_map`, which refuses it, to the plain formula), other widths to
    the plain formula. On a GPU it is cuDNN's, without masks, for bf16 and f16; anywhere else the plain
    formula. Only `qkv`, the result and the log-sum-exp are kept for the backward pass, whatever the platform.

    A program over several devices must call it inside `jax.shard_map`: a kernel is not partitioned for it.

    Args:
      bias: what was added to each row of `qkv`, for its gradient alone: the sum of all rows of the cotangent of `qkv`,
        which are at hand here, and would have to be read again. The projection then must not pass it one.
      interpret: run the TPU's kernel in the interpreter, on any platform; inside `jax.shard_map` with checked types
        that takes `pltpu.InterpretParams()` for True.

    Raises:
      ValueError: heads that do not divide the width, `valid` outside of 1..time, or ids or bias of another shape.
    """
    batch, time, width = qkv.shape
    valid = time if valid is None else valid
    if width % (3 * num_heads):
        raise ValueError(f"attention: a fused width of {width} is not 3 x {num_heads} heads.")
    if not 0 < valid <= time:
        raise ValueError(f"attention: valid must be in 1..{time}; got {valid}.")
    for name, x in (("segment_ids", segment_ids), ("key_mask", key_mask)):
        if x is not None and x.shape != (batch, time):
            raise ValueError(f"attention: {name} must be {(batch, time)}; got {x.shape}.")
    if bias is not None and bias.shape != (width,):
        raise ValueError(f"attention: bias must be {(width,)}; got {bias.shape}.")
    ids = _ids(segment_ids, key_mask) or ()
    (qkv, *rest), _ = same_type([qkv, *ids, *([] if bias is None else [bias.astype(jnp.float32)])])
    ids, bias = tuple(rest[: len(ids)]) or None, None if bias is None else rest[-1]
    return _attention(qkv, bias, ids, Options(num_heads, causal, valid, bias is not None, interpret))


def _ids(segment_ids, key_mask) -> Ids | None:
    """Padding as a query is -1, as a key 0: neither is another's."""
    if segment_ids is None and key_mask is None:
        return None
    if segment_ids is None:
        return jnp.ones(key_mask.shape, jnp.int32), key_mask.astype(jnp.int32)
    query_ids = jnp.where(segment_ids == 0, -1, segment_ids).astype(jnp.int32)
    key_ids = segment_ids if key_mask is None else jnp.where(key_mask, segment_ids, 0)
    return query_ids, key_ids.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(qkv, bias, ids, options):
    return _forward(qkv, ids, options)[0]


def _attention_forward(qkv, bias, ids, options):
    out, statistics = _forward(qkv, ids, options)
    return out, (qkv, ids, out, statistics)


def _attention_backward(options, residuals, out_bar):
    ids = residuals[1]
    qkv_bar, bias_bar = _backward(*residuals, out_bar, options)
    return qkv_bar, bias_bar, jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), ids)


_attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.jit, static_argnums=2)
def _forward(qkv, ids, options):
    """The result and the log-sum-exp, which only the whole-image kernel has."""
    geometry = _geometry(qkv, ids, options)

    def other(attend, qkv, ids):
        out = attend(qkv, ids)
        shape = (1,) if geometry is None else (len(qkv), *geometry.statistics)
        return out, same_type([jnp.zeros(shape, jnp.float32), out])[0][0]

    def kernel(qkv, ids):
        g = geometry
        out, statistics = whole_image.forward(_padded(qkv, g), _laid_out(ids, g), g, interpret=options.interpret)
        return out[:, : qkv.shape[1]], statistics

    if options.interpret:
        return kernel(qkv, ids)
    branches = {name: functools.partial(other, f) for name, f in _others(qkv, ids, options).items()}
    if geometry is not None:
        branches["tpu"] = kernel
    return jax.lax.platform_dependent(qkv, ids, **branches)


@functools.partial(jax.jit, static_argnums=5)
def _backward(qkv, ids, out, statistics, out_bar, options):
    """The cotangents of `qkv`, and of the bias if there is one."""
    geometry = _geometry(qkv, ids, options)

    def other(attend, qkv, ids, out, statistics, out_bar):
        qkv_bar = jax.vjp(lambda x: attend(x, ids), qkv)[1](out_bar)[0]
        return qkv_bar, qkv_bar.sum(axis=(0, 1), dtype=jnp.float32) if options.bias else None

    def kernel(qkv, ids, out, statistics, out_bar):
        g = geometry
        arrays = [_padded(x, g) for x in (qkv, out, out_bar)]
        qkv_bar, *bias_bar = whole_image.backward(
            *arrays, statistics, _laid_out(ids, g), g, interpret=options.interpret
        )
        return qkv_bar[:, : qkv.shape[1]], bias_bar[0].sum(axis=(0, 1)) if options.bias else None

    if options.interpret:
        return kernel(qkv, ids, out, statistics, out_bar)
    branches = {name: functools.partial(other, f) for name, f in _others(qkv, ids, options).items()}
    if geometry is not None:
        branches["tpu"] = kernel
    return jax.lax.platform_dependent(qkv, ids, out, statistics, out_bar, **branches)


def _others(qkv, ids, options: Options) -> dict:
    """What runs where the whole-image kernel does not, by platform."""
    o = options
    static = {"num_heads": o.num_heads, "causal": o.causal, "valid": o.valid}
    branches = {"default": functools.partial(plain_attention, **static)}
    # Splash attention's results have no type inside a checked `shard_map`, which refuses it.
    if qkv.shape[1] >= SPLASH_FROM and qkv.dtype in DTYPES and not jax.typeof(qkv).manual_axis_type.varying:
        branches["tpu"] = functools.partial(splash.long_attention, **static)
    if ids is None and cudnn_supports(qkv, o.num_heads):
        branches["cuda"] = lambda qkv, ids: cudnn_attention(qkv, **static)
    return branches


def _geometry(qkv, ids, options: Options) -> Geometry | None:
    batch, time, width = qkv.shape
    o = options
    if qkv.dtype not in DTYPES or not supports(time, width // 3, o.num_heads, qkv.dtype.itemsize):
        return None
    padded = tile_of_queries(time)[1]
    size, masked = qkv.dtype.itemsize, ids is not None
    return Geometry(batch, padded, width // 3, o.num_heads, o.valid, size, o.causal, masked, o.bias)


def _padded(x: Array, g: Geometry) -> Array:
    missing = g.time - x.shape[1]
    return x if not missing else jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))


def _laid_out(ids: Ids | None, g: Geometry) -> tuple[Array, ...]:
    """Ids of the queries along lanes, of the keys along rows, each as often as a register has the other."""
    if ids is None:
        return ()
    query_ids, key_ids = (_padded(x, g) for x in ids)
    query_ids = query_ids.reshape(g.batch, g.tiles, 1, g.tile)
    return (
        jnp.broadcast_to(query_ids, (g.batch, g.tiles, 8, g.tile)),
        jnp.broadcast_to(key_ids[:, :, None], (g.batch, g.time, LANES)),
    )
