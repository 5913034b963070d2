"""Which parameter lies where: the user's rules over names first, then the logical axes that a name stands for."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.nn import shard

if TYPE_CHECKING:
    from vlm_jax.mesh import Layout

# Of per-layer parameters at rest; see `shard.AT_REST` for what the axes are split over. The first part of a product's
# kernels is split by columns over `tensor`, the second by rows (Shoeybi et al. 2019, section 3), and all of them over
# `fsdp` along the residual stream. Columns of `qkv` are [query | key | value], whose halves are not the halves of the
# heads: it rests in rows, and `nn.layers.to_use` gives each device the columns of its heads.
LOGICAL_AXES = (
    (r"(.*/)?(qkv|kv)/kernel", ("rows", None)),
    (r"(.*/)?(pool|attn|cross)/q/kernel", ("embed", "heads")),
    (r"(.*/)?(attn|pool|cross)/out/kernel", ("heads", "embed")),
    (r"(.*/)?fc1/kernel", ("embed", "mlp")),
    (r"(.*/)?fc2/kernel", ("mlp", "embed")),
    (r"(.*/)?embed/token", ("vocab", "embed")),
    (r"(.*/)?embed/patch/kernel", (None, None, None, "embed")),
    (r"(.*/)?embed/posemb(_row|_col)?", (None, "embed")),
    (r"(.*/)?head/kernel", ("embed", None)),
    (r"(.*/)?head/embedding", ("vocab", "embed")),
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a parameter lies, and the rule that put it there."""

    rule: str
    spec: PartitionSpec


def place(name: str, shape: tuple[int, ...], layout: Layout, mesh: Mesh) -> Placement:
    """The placement of one per-layer parameter. Raises UserError where an explicit rule does not fit the shape."""
    for pattern, spec in layout.rules:
        if re.fullmatch(pattern, name):
            return _by_rule(f"{pattern} -> {spec}", spec, name, shape, layout, mesh)
    if math.prod(shape) < layout.min_size:
        return Placement(f"below min_size={layout.min_size}", PartitionSpec())
    for pattern, axes in LOGICAL_AXES:
        if re.fullmatch(pattern, name) and len(axes) == len(shape):
            spec = shard.spec(shape, axes, mesh, shard.AT_REST)
            if "rows" in axes and spec[0] is None:  # they divide over one of the two axes perhaps
                spec = shard.spec(shape, ["embed" if a == "rows" else a for a in axes], mesh, shard.AT_REST)
            return Placement(f"axes {','.join(a or '-' for a in axes)}", _with_fsdp(spec, shape, mesh))
    return Placement("largest dimension", _with_fsdp(PartitionSpec(*[None] * len(shape)), shape, mesh))


def _by_rule(rule: str, spec: str, name: str, shape: tuple[int, ...], layout: Layout, mesh: Mesh) -> Placement:
    if spec == "replicate":
        return Placement(rule, PartitionSpec())
    if spec == "fsdp":
        small = math.prod(shape) < layout.min_size
        return Placement(
            rule, PartitionSpec() if small else _with_fsdp(PartitionSpec(*[None] * len(shape)), shape, mesh)
        )
    axes = [None if part.strip() == "-" else part.strip() for part in spec.split(",")]
    if len(axes) != len(shape) or any(a and size % mesh.shape[a] for a, size in zip(axes, shape)):
        raise UserError(f"mesh.rules: {rule} does not fit {name} of shape {shape} on mesh {dict(mesh.shape)}.")
    return Placement(rule, PartitionSpec(*axes))


def _with_fsdp(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """`spec`, and `fsdp` along the largest dimension that it divides, where the spec does not have it yet."""
    ways = mesh.shape["fsdp"]
    taken = {axis for part in spec for axis in ((part,) if isinstance(part, str) else part or ())}
    free = [i for i, part in enumerate(spec) if part is None and shape[i] % ways == 0]
    if ways > 1 and "fsdp" not in taken and free:
        chosen = max(free, key=lambda i: shape[i])
        spec = PartitionSpec(*("fsdp" if i == chosen else part for i, part in enumerate(spec)))
    return spec if any(spec) else PartitionSpec()


def shardings(params: Any, layout: Layout, mesh: Mesh, stacks: Mapping[str, int]) -> Any:
    """A tree of shardings for the live `params`; the layers of a scanned group must agree on their rule."""

    def one(name: str, leaf) -> NamedSharding:
        names = tree.per_layer_names(name, leaf.shape, stacks)
        if names is None:
            return NamedSharding(mesh, place(name, leaf.shape, layout, mesh).spec)
        placements = {place(n, leaf.shape[1:], layout, mesh) for n in names}
        if len(placements) > 1:
            raise UserError(f"mesh.rules split the scanned layers of {name}; use one rule for all, or scan=False.")
        return NamedSharding(mesh, PartitionSpec(None, *placements.pop().spec))

    return tree.map_with_name(one, params)


def follow(state: Any, params: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for an optimizer state: what has a parameter's name and shape lies with it, the rest is replicated."""
    known = {
        name: (leaf.shape, sharding)
        for (name, leaf), sharding in zip(tree.flatten(params).items(), jax.tree.leaves(params_shardings))
    }

    def one(name: str, leaf) -> NamedSharding:
        parts = name.split("/")
        for start in range(len(parts)):
            shape, sharding = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return tree.map_with_name(one, state)


# What `explain` warns of: whole on every device though the mesh could split it.
LARGE = 2**20


@dataclasses.dataclass(frozen=True)
class Explained:
    """One per-layer parameter: where it lies, why, and the bytes that a device holds of it."""

    name: str
    shape: tuple[int, ...]
    placement: Placement
    bytes_per_device: int

    def __str__(self) -> str:
        spec = ", ".join("+".join(p) if isinstance(p, tuple) else p or "-" for p in self.placement.spec)
        size = f"{self.bytes_per_device / 2**20:.3f} MiB"
        return f"{self.name:<40} {self.shape!s:<20} {spec or 'whole':<20} {size:>12}  {self.placement.rule}"


def explain(params: Any, layout: Layout, mesh: Mesh, stacks: Mapping[str, int]) -> list[Explained]:
    """Every per-layer parameter of the live `params` (arrays or shapes), in order."""
    out = []
    for name, leaf in tree.flatten(tree.unstack(params, stacks)).items():
        placement = place(name, leaf.shape, layout, mesh)
        part = NamedSharding(mesh, placement.spec).shard_shape(leaf.shape)
        out.append(Explained(name, tuple(leaf.shape), placement, math.prod(part) * leaf.dtype.itemsize))
    return out


def table(params: Any, layout: Layout, mesh: Mesh, stacks: Mapping[str, int]) -> list[str]:
    """What `--explain_sharding` prints: a line a parameter, the sum of a device's parts, and warnings."""
    explained = explain(params, layout, mesh, stacks)
    total = sum(e.bytes_per_device for e in explained) / 2**20
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    lines = [*map(str, explained), f"mesh {axes}: {total:.1f} MiB of parameters on each device"]
    return lines + [f"warning: {line}" for line in warnings(explained, mesh)]


def warnings(explained: list[Explained], mesh: Mesh) -> list[str]:
    """Large parameters that every device holds whole though `fsdp` or `tensor` is more than one."""
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return []
    whole = [e for e in explained if not any(e.placement.spec) and e.bytes_per_device > LARGE]
    sizes = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1)
    return [
        f"{e.name} {e.shape} is whole on every device ({e.bytes_per_device / 2**20:.0f} MiB): {sizes} divides none of "
        f"its dimensions, or a rule says so ({e.placement.rule})."
        for e in whole
    ]
