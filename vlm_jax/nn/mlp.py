"""The two-layer perceptron of a transformer block."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn import kernels, shard
from vlm_jax.nn.activations import ACTIVATIONS
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear, to_rest, to_use

AXES1, AXES2 = ("embed", "mlp"), ("mlp", "embed")
TOKENS, MATRIX, VECTOR = ("batch", None, None), (None, None), (None,)


class Mlp(nnx.Module):
    """`fc2(activation(fc1(x)))`; `remat` keeps only `x` for the backward pass, and on a TPU is one kernel each way.

    Hidden units that are split over `tensor` are kept all the same.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str,
        remat: bool = False,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(width, hidden, axes=AXES1, init=init.fc1, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, axes=AXES2, init=init.fc2, dtype=dtype, rngs=rngs)
        self.activation, self.remat = activation, remat

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        if not self.remat or shard.ways("mlp") > 1:
            return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
        weights = (self.fc1.kernel[...], self.fc1.bias[...], self.fc2.kernel[...], self.fc2.bias[...])
        return _recomputed(x.astype(self.fc1.dtype), weights, self.activation, shard.grad_dtype())


class Projector(nnx.Module):
    """`fc2(gelu(fc1(x)))` from one width to another, which the hidden units have too (LLaVA-1.5: arXiv:2310.03744)."""

    def __init__(self, in_dim: int, width: int, *, dtype: str, init: Initializers, rngs: nnx.Rngs):
        self.fc1 = linear(in_dim, width, axes=AXES1, init=init.fc1, dtype=dtype, rngs=rngs)
        self.fc2 = linear(width, width, axes=AXES2, init=init.fc2, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time in_dim"]) -> Float[Array, "batch time dim"]:
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(x)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _recomputed(x, weights, activation, grad_dtype):
    f = functools.partial(kernels.perceptron, activation=activation)
    run = shard.per_shard(f, (TOKENS, MATRIX, VECTOR, MATRIX, VECTOR), TOKENS)
    return run(x, *_to_use(weights, x.dtype))


def _forward(x, weights, activation, grad_dtype):
    return _recomputed(x, weights, activation, grad_dtype), (x, weights)


def _backward(activation, grad_dtype, kept, y_bar):
    x, weights = kept
    summed = jnp.promote_types(grad_dtype, x.dtype)

    def one_device(*operands):
        """Its part of the weights' gradients, with an axis over devices that is still to be summed."""
        x_bar, *bars = kernels.perceptron_gradients(*operands, activation=activation)
        return x_bar, *(bar.astype(summed if bar.ndim == 2 else bar.dtype)[None] for bar in bars)

    # Copies of a matrix lie one after another along its rows, so that what is scattered is a matrix.
    parts = (("part", "replica", None), ("batch", None)) * 2
    run = shard.per_shard(one_device, (TOKENS, TOKENS, MATRIX, VECTOR, MATRIX), (TOKENS, *parts))
    x_bar, *bars = run(x, y_bar, *_to_use(weights, x.dtype)[:3])
    axes = (AXES1, (None, AXES1[1]), AXES2, (None, AXES2[1]))
    at_rest = (_at_rest(bar, a, w.shape) for bar, a, w in zip(bars, axes, weights))
    return x_bar, tuple(bar.astype(w.dtype) for bar, w in zip(at_rest, weights))


def _at_rest(bar: Float[Array, "parts ..."], axes: tuple[str | None, str | None], shape: tuple[int, ...]) -> Array:
    """The sum over devices, as the parameter rests. A matrix's is over those first that hold a copy in parts."""
    if len(shape) == 1:
        return to_rest(bar.sum(axis=0, keepdims=True), axes, 1)[0]
    return to_rest(bar.sum(axis=0).reshape(-1, *shape).sum(axis=0), axes, 1)


_recomputed.defvjp(_forward, _backward)


def _to_use(weights, dtype):
    """The weights whole on each device. Matrices that have to be gathered are cast before; kernels cast the others."""
    kernel1, bias1, kernel2, bias2 = weights
    if shard.ways("part") > 1:
        kernel1, kernel2 = kernel1.astype(dtype), kernel2.astype(dtype)
    biases = bias1.astype(jnp.float32), bias2.astype(jnp.float32)
    return to_use(kernel1, AXES1, 1), biases[0], to_use(kernel2, AXES2, 1), biases[1]
