"""Matrix-product FLOPs of a function, counted in its jaxpr: loops by their length, sharded parts by their devices."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

# Dense bf16 peak per device, in TFLOP/s, from the vendors' data sheets.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
}


def peak_tflops(device_kind: str) -> float | None:
    """The peak of a device by its `device_kind`, or None where it is not in the table (a CPU)."""
    matches = [name for name in PEAK_TFLOPS if device_kind.lower().startswith(name.lower())]
    return PEAK_TFLOPS[max(matches, key=len)] if matches else None


def count(function: Callable, *args) -> float:
    """FLOPs of the dot products and convolutions of `function(*args)`, over all devices; arguments may be shapes."""
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr(jaxpr: Jaxpr) -> float:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(eqn) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
        return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs
    inner = [_jaxpr(j) for value in eqn.params.values() for j in _inside(value)]
    if name == "scan":
        return eqn.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        return math.prod(eqn.params["mesh"].shape.values()) * sum(inner)
    if name in ("custom_vjp_call", "custom_jvp_call", "custom_vjp_call_jaxpr"):
        return max(inner, default=0.0)
    return sum(inner)


def _inside(value) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [j for item in value for j in _inside(item)] if isinstance(value, (tuple, list)) else []
