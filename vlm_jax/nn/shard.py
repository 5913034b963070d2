"""Where activations lie: logical axes of arrays, laid over the mesh that a function is traced under.

A model names what its axes are (`batch`, `heads`, ...) and never sees a device. `under(mesh)` makes a mesh ambient
while a step is traced; without one, on one device, or inside a manual `jax.shard_map`, nothing here changes anything.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from vlm_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")

# Logical axis -> axes of the mesh. `embed` is the width of the residual stream: whole in activations and in weights
# that are in use, split over `fsdp` in weights at rest. `rows` are those of a matrix that rests in a layout of its own
# (see `vlm_jax.nn.attention`). At rest there are as many copies of a parameter as `replica`, each in as many parts as
# `part`.
IN_USE = {"batch": BATCH_AXES, "heads": ("tensor",), "mlp": ("tensor",), "vocab": ("tensor",), "embed": (), "rows": ()}
IN_USE |= {"replica": ("data",), "part": ("fsdp",)}
AT_REST = IN_USE | {"embed": ("fsdp",), "rows": ("fsdp", "tensor")}

Axes = Sequence[str | None]

_GRAD_DTYPE = contextvars.ContextVar("grad_dtype", default="float32")


@contextlib.contextmanager
def under(mesh: Mesh | AbstractMesh | None, grad_dtype: str = "float32") -> Iterator[None]:
    """Traces what is inside for `mesh`; `grad_dtype` is what gradients of matrices are summed in over devices.

    `None` is no mesh.
    """
    token = _GRAD_DTYPE.set(grad_dtype)
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    try:
        with jax.sharding.use_abstract_mesh(abstract) if abstract is not None else contextlib.nullcontext():
            yield
    finally:
        _GRAD_DTYPE.reset(token)


def grad_dtype() -> str:
    """The dtype that gradients of matrices are summed in over devices."""
    return _GRAD_DTYPE.get()


def ambient() -> AbstractMesh | None:
    """The mesh that is traced under, or None where there is nothing to lay out."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind == AxisType.Manual for kind in mesh.axis_types):
        return None
    return mesh


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that the arrays of `tree` lie on, None where they lie on one device without any."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    meshes = (s.mesh for s in shardings if isinstance(s, NamedSharding))
    return next((mesh for mesh in meshes if isinstance(mesh, Mesh)), None)


def ways(axis: str, table: Mapping[str, tuple[str, ...]] = IN_USE) -> int:
    """How many ways the ambient mesh splits a logical axis."""
    mesh = ambient()
    return 1 if mesh is None else _size(_names(axis, mesh, table), mesh)


def part(count: int, axis: str, what: str) -> int:
    """How many of `count` each device has, along a logical axis. Raises UserError where they do not divide."""
    if count % ways(axis):
        raise UserError(f"mesh: tensor={ways(axis)} does not divide the model's {count} {what}.")
    return count // ways(axis)


def spec(shape: Sequence[int], axes: Axes, mesh: Mesh | AbstractMesh, table=IN_USE) -> PartitionSpec:
    """The partition of an array with these logical axes; a dimension that does not divide stays whole."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for an array of shape {tuple(shape)}.")
    names = [_names(axis, mesh, table) for axis in axes]
    return PartitionSpec(*(n if size % _size(n, mesh) == 0 else None for size, n in zip(shape, names)))


def constrain(x: Shaped[Array, "..."], *axes: str | None, table=IN_USE) -> Shaped[Array, "..."]:
    """`x`, laid out by its logical axes (None: whole); so is its cotangent."""
    mesh = ambient()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec(x.shape, axes, mesh, table))


def per_shard(
    f: Callable, in_axes: Sequence[Axes], out_axes: Axes | Sequence[Axes], *, checked: bool = True
) -> Callable:
    """`f` on each device's part of its arguments, as a kernel needs that the partitioner cannot split.

    `in_axes` has the logical axes of each argument, `out_axes` those of the result, or of each result. `f` must treat
    each part by itself. A logical axis is split only where every dimension that it names divides; `replica` and `part`
    only where `batch` is. `checked` is `check_vma` of `jax.shard_map`, which not all kernels bear.
    """
    several = not all(isinstance(axis, (str, type(None))) for axis in out_axes)

    def call(*args):
        mesh = ambient()
        if mesh is None:
            return f(*args)
        named = [(axis, size) for a, axes in zip(args, in_axes, strict=True) for axis, size in zip(axes, a.shape)]
        whole = {axis for axis, size in named if axis and size % ways(axis)}
        whole |= {"replica", "part"} if "batch" in whole else set()

        def of(axes: Axes) -> PartitionSpec:
            return PartitionSpec(*(_names(None if axis in whole else axis, mesh, IN_USE) for axis in axes))

        out_specs = tuple(map(of, out_axes)) if several else of(out_axes)
        in_specs = tuple(map(of, in_axes))
        return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked)(*args)

    return call


def _names(axis: str | None, mesh: Mesh | AbstractMesh, table) -> tuple[str, ...] | str | None:
    """The axes of the mesh that a logical axis is split over, as a partition has them."""
    names = tuple(name for name in table[axis] if mesh.shape.get(name, 1) > 1) if axis else ()
    return names if len(names) > 1 else names[0] if names else None


def _size(names: tuple[str, ...] | str | None, mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names or ()))
