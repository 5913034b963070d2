"""The two-layer perceptron of a transformer block: its formula, and when a TPU's kernels take it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.kernels import mlp_tpu as tpu
from vlm_jax.nn.kernels.varying import same_type

Gradients = tuple[Array, Array, Array, Array, Array]


@functools.partial(jax.jit, static_argnames=("activation", "interpret"))
def perceptron(
    x: Float[Array, "batch time dim"],
    kernel1: Float[Array, "dim hidden"],
    bias1: Float[Array, " hidden"],
    kernel2: Float[Array, "hidden dim"],
    bias2: Float[Array, " dim"],
    *,
    activation: str,
    interpret: Any = False,
) -> Float[Array, "batch time dim"]:
    """`activation(x kernel1 + bias1) kernel2 + bias2`, computed in the dtype of `x`; weights may be f32.

    Not differentiable by itself where a kernel runs: see `perceptron_gradients`. On a TPU whose vector memory holds
    both matrices and their f32 gradients (up to 1,024 x 4,096 on a v5e or v6e), hidden activations never reach main
    memory. A program over several devices must call it inside `jax.shard_map`.

    Args:
      activation: a name of `vlm_jax.nn.activations.ACTIVATIONS`.
      interpret: as for `vlm_jax.nn.kernels.attention`.
    """
    (x, *weights), _ = same_type([x, kernel1, bias1, kernel2, bias2])
    plain = functools.partial(_plain, activation=activation)
    return _choose("forward", plain, [x, *weights], kernel1, activation, interpret)


@functools.partial(jax.jit, static_argnames=("activation", "interpret"))
def perceptron_gradients(
    x: Float[Array, "batch time dim"],
    y_bar: Float[Array, "batch time dim"],
    kernel1: Float[Array, "dim hidden"],
    bias1: Float[Array, " hidden"],
    kernel2: Float[Array, "hidden dim"],
    *,
    activation: str,
    interpret: Any = False,
) -> Gradients:
    """Cotangents of `x`, both kernels and biases (in `perceptron`'s order), those of weights f32 sums.

    Hidden activations are computed again from `x`.
    """
    (x, y_bar, *weights), _ = same_type([x, y_bar, kernel1, bias1, kernel2])
    plain = functools.partial(_plain_gradients, activation=activation)
    return _choose("backward", plain, [x, y_bar, *weights], kernel1, activation, interpret)


def _choose(stage: str, plain, operands: list[Array], kernel1: Array, activation: str, interpret: Any):
    options = options_for(stage, operands[0], kernel1, activation, interpret)
    if options is None:
        return plain(*operands)
    kernel = functools.partial(getattr(tpu, stage), options=options)
    return kernel(*operands) if interpret else lax.platform_dependent(*operands, tpu=kernel, default=plain)


def options_for(
    stage: str,
    x: Float[Array, "batch time dim"],
    kernel1: Float[Array, "dim hidden"],
    activation: str,
    interpret: Any = False,
) -> tpu.Options | None:
    """How the kernel of a stage works on `x` on the chip that is traced for; None where the formula is taken."""
    chip = _chip(bool(interpret))
    cut = chip and tpu.cut(stage, x, kernel1, chip)
    if not cut:
        return None
    wide = x.dtype == jnp.float32 or chip.generation < 6  # older vector units have no bf16
    return tpu.Options(cut, activation, "float32" if wide else x.dtype.name, tpu.limit(chip), interpret)


def _chip(interpret: bool) -> pltpu.TpuInfo | None:
    """The chip that is traced for."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:  # no TPU
        return pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1) if interpret else None


def _hidden(x: Array, kernel1: Array, bias1: Array) -> Array:
    return x @ kernel1.astype(x.dtype) + bias1.astype(x.dtype)


def _plain(x, kernel1, bias1, kernel2, bias2, *, activation):
    return ACTIVATIONS[activation](_hidden(x, kernel1, bias1)) @ kernel2.astype(x.dtype) + bias2.astype(x.dtype)


def _plain_gradients(x, y_bar, kernel1, bias1, kernel2, *, activation):
    hidden, pull = jax.vjp(ACTIVATIONS[activation], _hidden(x, kernel1, bias1))
    (before_bar,) = pull(y_bar @ kernel2.astype(x.dtype).T)
    rows = tuple(range(x.ndim - 1))
    product = lambda a, b: lax.dot_general(a, b, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    total = lambda a: a.sum(axis=rows, dtype=jnp.float32)
    x_bar = before_bar @ kernel1.astype(x.dtype).T
    return x_bar, product(x, before_bar), total(before_bar), product(hidden, y_bar), total(y_bar)
