"""Fingerprints of arrays: 64 bits that a flipped bit or two swapped rows change, whatever the sharding.

Stored arrays carry no checksum where compression does not shrink them, so a bit that flips on a disk loads silently.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

from vlm_jax import tree

Tree = Any


def fingerprint(arrays: Tree) -> dict[str, str]:
    """16 hexadecimal digits for every array of a tree, by name.

    Every 32-bit word goes through a bijection that depends on its place, and the results are summed modulo 2^32: one
    changed word always changes the sum, and what is moved changes it as a hash would. Sums of integers depend on no
    order, so shardings, devices and processes do not matter; dtype and shape do. Leaves are jax or numpy arrays (all
    dtypes but complex ones and strings), numbers, or typed keys.
    """
    # A program a shape and not one for the whole tree: 432 arrays compile in 0.1 s instead of 4, and run as fast.
    # One at a time: many programs with collectives in flight can starve each other of threads on simulated devices.
    return {name: _digits(leaf) for name, leaf in tree.flatten(arrays).items()}


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names whose fingerprints are not the same, or that only one of the two has, sorted."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


def _digits(leaf) -> str:
    words, kind = _plain(leaf)
    low, high = (int(s) for s in jax.device_get(_sums(_mesh(words))(words)))
    return f"{high ^ zlib.crc32(kind.encode()):08x}{low:08x}"


def _plain(leaf) -> tuple[Array | np.ndarray, str]:
    """The leaf as an array that jax takes without converting it, and what else it is told by: dtype and shape."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    kind = f"{leaf.dtype}{list(leaf.shape)}"
    if leaf.dtype.itemsize == 8 and not isinstance(leaf, jax.Array):  # jax would make 32 bits of it
        leaf = np.ascontiguousarray(leaf)[..., None].view(np.uint32)
    return leaf, kind


def _mesh(leaf) -> Mesh | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


@functools.cache
def _sums(mesh: Mesh | None):
    """The jitted sums; their result is on every device, so that every process can read it."""
    return jax.jit(_two_sums, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def _two_sums(x: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    words = _words(x)
    place = jnp.zeros((), jnp.uint32)  # flat index, without a reshape that would gather what is sharded
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    place = _mix(place)
    low = _mix(words ^ place)
    high = _mix(low + place * jnp.uint32(0x9E3779B9))
    return jnp.stack([low.sum(dtype=jnp.uint32), high.sum(dtype=jnp.uint32)])


def _words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """The bits of every element as one word; of 64-bit ones as two, on a last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3 (Appleby), a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
