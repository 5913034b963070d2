"""What the contrastive losses accept: checks at trace time, and the mesh axes that a local block varies over."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pairs(NamedTuple):
    """One device's block of a batch of pairs, checked; masked rows are zero, so that garbage in them goes nowhere."""

    image: jax.Array  # [b, d]
    text: jax.Array  # [b, d]
    ids: jax.Array | None  # [b]
    mask: jax.Array | None  # [b]
    axes: tuple[str, ...]  # mesh axes that the batch is split over; () where the block is the whole batch
    devices: int  # how many blocks make the batch


def check_pairs(image, text, ids, mask, axis_name, group_size) -> Pairs:
    """Checks the arguments that the contrastive losses share.

    Raises:
      ValueError: saying what was given and what is allowed.
    """
    image, text = jnp.asarray(image), jnp.asarray(text)
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be [batch, dim]; got {image.shape} and {text.shape}.")
    for name, x in (("image", image), ("text", text)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must hold floating-point features; got {x.dtype}.")
    dtype = jnp.promote_types(image.dtype, text.dtype)
    image, text = image.astype(dtype), text.astype(dtype)
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
    axes = check_axes(axis_name, image=image, text=text)
    image, text, ids, mask = (None if x is None else vary(x, axes) for x in (image, text, ids, mask))
    devices = jax.lax.axis_size(axes) if axes else 1
    if group_size is not None and (group_size < 1 or devices % group_size):
        over = f"axis {axis_name!r} of {devices} devices" if axes else "a batch that is not split (axis_name=None)"
        raise ValueError(f"group_size must divide the number of devices; got {group_size} for {over}.")
    return Pairs(image, text, ids, mask, axes, devices)


def check_scalar(name: str, x) -> jax.Array:
    """Returns `x` as an array, or raises a ValueError if it is not one number."""
    x = jnp.asarray(x)
    if x.shape or not jnp.issubdtype(x.dtype, jnp.number):
        raise ValueError(f"{name} must be a scalar; got {x.dtype} of shape {x.shape}.")
    return x


def check_axes(axis_name, **blocks: jax.Array) -> tuple[str, ...]:
    """Returns the axis names as a tuple, after checking that every one of `blocks` is split over all of them."""
    axes = () if axis_name is None else axis_name if isinstance(axis_name, tuple) else (axis_name,)
    known = jax.sharding.get_abstract_mesh().manual_axes
    for name in axes:
        if name not in known or axes.count(name) > 1:
            inside = f"one or more of {known}" if known else "None outside of jax.shard_map"
            raise ValueError(f"axis_name must be {inside}, each once; got {axis_name!r}.")
    # Without varying types a psum transposes to a psum: gradients taken inside shard_map and through it
    # differ by the number of devices, and no rule can be right for both.
    if axes and not varying(jax.lax.axis_index(axes)):
        raise ValueError(f"over axis_name={axis_name!r} the loss needs jax.shard_map(..., check_vma=True); got False.")
    for name, x in blocks.items():
        same = [axis for axis in axes if axis not in varying(x) and jax.lax.axis_size(axis) > 1]
        if same:
            raise ValueError(f"{name} must be split over {axes}; got the same block all along {same} (see in_specs).")
    return axes


def varying(x: jax.Array) -> frozenset[str]:
    """Names of the mesh axes along which `x` may differ between devices."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """`x` as a value that may differ along `axes`; its gradient is summed over those where it did not."""
    missing = tuple(axis for axis in axes if axis not in varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
