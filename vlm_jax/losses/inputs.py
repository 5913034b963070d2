"""What the contrastive losses accept: checks at trace time, and the mesh axes that a local block varies over."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .ring import Ring, choose_group


class Pairs(NamedTuple):
    """One device's block of a batch of pairs. Masked rows are zero, so that garbage in them goes nowhere."""

    image: jax.Array  # [b, d]
    text: jax.Array  # [b, d]
    ids: jax.Array | None  # [b]
    mask: jax.Array | None  # [b]


def check_pairs(image, text, ids, mask, axis_name, group_size, **scalars) -> tuple[Pairs, list[jax.Array], Ring]:
    """Checks the arguments that the contrastive losses share, and makes all of them vary over the same axes.

    Raises:
      ValueError: saying what was given and what is allowed.
    """
    image, text = jnp.asarray(image), jnp.asarray(text)
    if image.ndim != 2 or image.shape != text.shape or not image.size:
        raise ValueError(f"image and text must both be [batch, dim], not empty; got {image.shape} and {text.shape}.")
    for name, x in (("image", image), ("text", text)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must hold floating-point features; got {x.dtype}.")
    dtype = jnp.promote_types(image.dtype, text.dtype)
    image, text = image.astype(dtype), text.astype(dtype)
    scalars = [_scalar(name, x).astype(wide(dtype)) for name, x in scalars.items()]
    batch = image.shape[0]
    if ids is not None:
        ids = jnp.asarray(ids)
        if ids.shape != (batch,) or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"ids must be integers of shape {(batch,)}; got {ids.dtype} of shape {ids.shape}.")
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != (batch,) or mask.dtype != jnp.bool_:
            raise ValueError(f"mask must be bool of shape {(batch,)}; got {mask.dtype} of shape {mask.shape}.")
        image, text = (jnp.where(mask[:, None], x, 0) for x in (image, text))
    axes = check_axes("axis_name", axis_name, image=image, text=text)
    devices = jax.lax.axis_size(axes) if axes else 1
    if group_size is None:
        group_size = choose_group(devices, batch)
    if group_size < 1 or devices % group_size:
        over = f"axis {axis_name!r} of {devices} devices" if axes else "a batch that is not split (axis_name=None)"
        raise ValueError(f"group_size must divide the number of devices; got {group_size} for {over}.")
    given = Pairs(image, text, ids, mask), scalars
    everywhere = frozenset(axes).union(*(varying(x) for x in jax.tree.leaves(given)))
    return *jax.tree.map(lambda x: vary(x, everywhere), given), Ring(axes, devices, group_size)


def count_pairs(pairs: Pairs, ring: Ring) -> jax.Array:
    """How many pairs of the whole batch count, f32; at least 1, so that an empty batch has loss 0."""
    if pairs.mask is None:
        return jnp.float32(pairs.image.shape[0] * ring.devices)
    return jnp.maximum(ring.total(pairs.mask.sum(dtype=jnp.float32)), 1)


def check_axes(argument: str, axis_name, **blocks: jax.Array) -> tuple[str, ...]:
    """The axis names that `argument` gives, as a tuple; every one of `blocks` must be split over all of them."""
    axes = () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)
    known = jax.sharding.get_abstract_mesh().manual_axes
    for name in axes:
        if name not in known or axes.count(name) > 1:
            inside = f"one or more of {known}" if known else "None outside of jax.shard_map"
            raise ValueError(f"{argument} must be {inside}, each once; got {axis_name!r}.")
    # Without varying types a psum transposes to a psum: gradients taken inside shard_map and through it
    # differ by the number of devices, and no rule can be right for both.
    if axes and not varying(jax.lax.axis_index(axes)):
        raise ValueError(f"over {argument}={axis_name!r} the loss needs jax.shard_map(..., check_vma=True); got False.")
    for name, x in blocks.items():
        same = [axis for axis in axes if axis not in varying(x) and jax.lax.axis_size(axis) > 1]
        if same:
            raise ValueError(f"{name} must be split over {axes}; got the same block all along {same} (see in_specs).")
    return axes


def wide(dtype) -> jnp.dtype:
    """The type of sums over features of `dtype`: f32, or f64 for f64."""
    return jnp.promote_types(dtype, jnp.float32)


def varying(x: jax.Array) -> frozenset[str]:
    """Names of the mesh axes along which `x` may differ between devices."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: jax.Array, axes) -> jax.Array:
    """`x` as a value that may differ along `axes`; its gradient is summed over those where it did not."""
    missing = tuple(axis for axis in axes if axis not in varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _scalar(name: str, x) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape or not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise ValueError(f"{name} must be a scalar; got {x.dtype} of shape {x.shape}.")
    return x
