"""Causal attention whose keys and values are fewer heads than the queries (Ainslie et al. 2023, arXiv:2305.13245)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.nn.kernels.geometry import DTYPES
from vlm_jax.nn.kernels.splash import MULTIPLE, block_sizes

Query = Float[Array, "batch time heads head_dim"]
Keys = Float[Array, "batch time kv_heads head_dim"]


def seen_by(
    segment_ids: Int[Array, "batch time"], prefix: Bool[Array, "batch time"] | None = None
) -> Bool[Array, "batch time time"]:
    """True where a query (axis 1) sees a key (axis 2): of its segment, up to itself, and the segment's prefix."""
    time = segment_ids.shape[1]
    before = jnp.tril(jnp.ones((time, time), bool))[None]
    if prefix is not None:
        before = before | prefix[:, None, :]
    return before & (segment_ids[:, :, None] == segment_ids[:, None, :])


def causal_attention(
    query: Query, key: Keys, value: Keys, segment_ids: Int[Array, "batch time"], *, interpret: bool = False
) -> Query:
    """Scaled dot-product attention of each token to those up to itself in its segment, softmax in f32.

    Query heads `g * n ... g * n + n - 1` share head g of the keys and values. On a TPU it is splash attention, which
    keeps no [time, time] weights, in bf16 and for times that are multiples of 128; on a GPU and elsewhere the plain
    formula, whose weights are made again for the gradient. A token of segment 0 is padding, what it gets means nothing.

    A program over several devices must call it inside `jax.shard_map(check_vma=False)`: a kernel is not partitioned.
    """
    return _attention(query, key, value, segment_ids, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, segment_ids, interpret):
    return _by_platform(query, key, value, segment_ids, interpret)


def _forward(query, key, value, segment_ids, interpret):
    return _attention(query, key, value, segment_ids, interpret), (query, key, value, segment_ids)


def _backward(interpret, kept, out_bar):
    *arrays, segment_ids = kept
    of = lambda attend, *arrays: attend(*arrays, segment_ids)
    branches = {
        platform: lambda *args, f=f: jax.vjp(functools.partial(of, f), *args[:3])[1](args[3])
        for platform, f in _branches(arrays[0], interpret).items()
    }
    bars = jax.lax.platform_dependent(*arrays, out_bar, **branches)
    return (*bars, np.zeros(segment_ids.shape, jax.dtypes.float0))


_attention.defvjp(_forward, _backward)


def _by_platform(query, key, value, segment_ids, interpret):
    return jax.lax.platform_dependent(query, key, value, segment_ids, **_branches(query, interpret))


def _branches(query: Array, interpret: bool) -> dict:
    if interpret:
        return {"default": functools.partial(_splash, interpret=True)}
    branches = {"default": _plain}
    if query.shape[1] % MULTIPLE == 0 and query.dtype in DTYPES and query.dtype != jnp.float32:
        branches["tpu"] = functools.partial(_splash, interpret=False)
    return branches


def _plain(query, key, value, segment_ids):
    return jax.nn.dot_product_attention(query, key, value, mask=seen_by(segment_ids)[:, None])


def _splash(query, key, value, segment_ids, *, interpret):
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((time, time))] * (heads // kv_heads))
    kernel = splash_attention.make_splash_mqa_single_device(mask, block_sizes=block_sizes(time), interpret=interpret)
    each_group = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    query = query.reshape(batch, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4) * head_dim**-0.5
    ids = splash_attention.SegmentIds(segment_ids, segment_ids)
    out = jax.vmap(each_group)(query, key.swapaxes(1, 2), value.swapaxes(1, 2), ids)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, head_dim)
