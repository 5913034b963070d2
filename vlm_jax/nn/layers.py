"""Linear layers and LayerNorm with the policies of this package: f32 parameters, computation in `dtype`, and on a mesh
matrices that are gathered where they are used and whose gradients go back to where they rest."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from vlm_jax.nn import kernels, shard


class LayerNorm(nnx.LayerNorm):
    """LayerNorm with statistics in f32 and its result in `dtype`; the variance is E[x^2] - E[x]^2, one pass over x."""

    def add(
        self,
        x: Float[Array, "batch *time dim"],
        y: Float[Array, "batch *time dim"] | None,
        y_bias: Float[Array, " dim"] | None = None,
    ) -> tuple[Float[Array, "batch *time dim"], Float[Array, "batch *time dim"]]:
        """`s = x + y`, and the norm of `s`; no `y` is zero. In bf16 it is one kernel, where the platform has it.

        `y_bias` is the kernel's: the bias in `y` that gets its gradient here.
        """
        if x.dtype != jnp.bfloat16:
            x = x if y is None else x + y
            return x, self(x)
        return self._fused(x, y, y_bias, with_sum=True)

    def of_sum(
        self, x: Float[Array, "batch *time dim"], y: Float[Array, "batch *time dim"] | None
    ) -> Float[Array, "batch *time dim"]:
        """The norm alone of `x + y`."""
        return self._fused(x, y, None, with_sum=False) if x.dtype == jnp.bfloat16 else self.add(x, y)[1]

    def _fused(self, x: Array, y: Array | None, y_bias: Array | None, *, with_sum: bool):
        rows, features = ("batch", *[None] * (x.ndim - 1)), (None,)
        arguments = [x, self.scale[...], self.bias[...]] + [a for a in (y, y_bias) if a is not None]
        options = {"epsilon": self.epsilon, "with_sum": with_sum}
        fused = lambda x, scale, bias, y=None, y_bias=None: kernels.add_layer_norm(x, y, scale, bias, y_bias, **options)
        axes = [rows, features, features, rows, features][: len(arguments)]
        return shard.per_shard(fused, axes, (rows, rows) if with_sum else rows)(*arguments)


class RmsNorm(nnx.RMSNorm):
    """`x / rms(x) * scale` with statistics in f32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def add(
        self, x: Float[Array, "batch *time dim"], y: Float[Array, "batch *time dim"] | None
    ) -> tuple[Float[Array, "batch *time dim"], Float[Array, "batch *time dim"]]:
        """`s = x + y`, and the norm of `s`; no `y` is zero."""
        x = x if y is None else x + y
        return x, self(x)

    def of_sum(
        self, x: Float[Array, "batch *time dim"], y: Float[Array, "batch *time dim"] | None
    ) -> Float[Array, "batch *time dim"]:
        """The norm alone of `x + y`."""
        return self.add(x, y)[1]


def rms_norm(width: int, *, epsilon: float, dtype: str, rngs: nnx.Rngs) -> RmsNorm:
    """An RMSNorm over the last axis."""
    return RmsNorm(width, epsilon=epsilon, dtype=jnp.dtype(dtype), rngs=rngs)


def layer_norm(width: int, *, epsilon: float, dtype: str, rngs: nnx.Rngs) -> LayerNorm:
    """A LayerNorm over the last axis."""
    return LayerNorm(width, epsilon=epsilon, dtype=jnp.dtype(dtype), rngs=rngs)


class Linear(nnx.Linear):
    """`x kernel + bias`; `axes` are the logical axes of the kernel, `groups` the parts that its columns consist of."""

    def __init__(self, *args, axes: tuple[str | None, str | None], groups: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.axes, self.groups = axes, groups

    def __call__(
        self, x: Float[Array, "*batch in_dim"], *, bias_gradient: bool = True
    ) -> Float[Array, "*batch out_dim"]:
        """`bias_gradient=False` where what takes the result gives the bias its gradient."""
        bias = None if self.bias is None else self.bias[...]
        bias = bias if bias is None or bias_gradient else jax.lax.stop_gradient(bias)
        return project(x.astype(self.dtype), self.kernel[...], bias, self.axes, self.groups)


def linear(
    width: int,
    out_dim: int,
    *,
    bias: bool = True,
    axes: tuple[str | None, str | None] = ("embed", None),
    groups: int = 1,
    init: Initializer,
    dtype: str,
    rngs: nnx.Rngs,
) -> Linear:
    """A linear layer; see `vlm_jax.nn.shard` for the names of axes."""
    options = {"use_bias": bias, "kernel_init": init, "dtype": jnp.dtype(dtype), "rngs": rngs}
    return Linear(width, out_dim, axes=axes, groups=groups, **options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _product(x, kernel, bias, axes, groups, grad_dtype):
    y = _out(x @ to_use(kernel.astype(x.dtype), axes, groups), axes)
    return y if bias is None else y + to_use(bias.astype(x.dtype)[None], (None, axes[1]), groups)[0]


def project(
    x: Float[Array, "*batch in_dim"],
    kernel: Float[Array, "in_dim out_dim"],
    bias: Float[Array, " out_dim"] | None,
    axes: tuple[str | None, str | None],
    groups: int = 1,
) -> Float[Array, "*batch out_dim"]:
    """`x kernel + bias` in the dtype of `x`, rows of the batch over `batch`, columns over the second of `axes`.

    The kernel is cast, then gathered, in the forward and again in the backward pass, so that a whole matrix need not
    be kept between them. Its gradient is summed over devices in `shard.grad_dtype()`, the bias's in f32.
    """
    lead = x.shape[:-1]
    if x.ndim == 3 and lead[1] % 8 == 0:  # rows that fill a TPU's tiles are all alike, and need not be moved for it
        x = x.reshape(-1, x.shape[-1])
    return _product(x, kernel, bias, axes, groups, shard.grad_dtype()).reshape(*lead, -1)


def _forward(x, kernel, bias, axes, groups, grad_dtype):
    return _product(x, kernel, bias, axes, groups, grad_dtype), (x, kernel, bias)


def _sum_rows(dy: Float[Array, "*batch dim"], fused: bool) -> Float[Array, "1 dim"]:
    """The sum over all rows in f32; `fused`: what makes them, as an activation's derivative does, makes their sum.

    A kernel's result is read once more for it. As a product with ones that takes a TPU a third of the time of a sum
    (by the compiler's estimate, [128, 196, 2304] on a v5e); of a single row of ones, or ones that it sees, XLA makes
    a sum again.
    """
    rows = tuple(range(dy.ndim - 1))
    if fused:
        return dy.sum(axis=rows, dtype=jnp.float32)[None]
    ones = jax.lax.optimization_barrier(jnp.ones((8, *dy.shape[:-1]), dy.dtype))
    over = tuple(range(1, dy.ndim))
    return jax.lax.dot_general(ones, dy, ((over, rows), ((), ())), preferred_element_type=jnp.float32)[:1]


def _backward(axes, groups, grad_dtype, kept, dy):
    x, kernel, bias = kept
    dy = _out(dy, axes)
    dx = dy @ to_use(kernel.astype(x.dtype), axes, groups).T
    dx = shard.constrain(dx, "batch", *[None] * (dx.ndim - 2), axes[0])
    rows = tuple(range(x.ndim - 1))
    summed = jnp.promote_types(grad_dtype, x.dtype)
    dk = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=summed)
    dk = to_rest(dk, axes, groups).astype(kernel.dtype)
    if bias is None:
        return dx, dk, None
    db = _sum_rows(dy, fused=axes[1] == "mlp")
    return dx, dk, to_rest(db, (None, axes[1]), groups)[0].astype(bias.dtype)


_product.defvjp(_forward, _backward)


def _out(y, axes):
    return shard.constrain(y, "batch", *[None] * (y.ndim - 2), axes[1])


def to_use(
    kernel: Float[Array, "in_dim out_dim"], axes: tuple[str | None, str | None], groups: int
) -> Float[Array, "in_dim out_dim"]:
    """A matrix as products need it: whole, but for the axes that products are split over.

    Columns that consist of `groups` (query, key, value), each of which is split over devices, are put in the order
    device, group, column: then every device's columns are contiguous, and groups of its own.
    """
    split = 1 if axes[1] is None else shard.ways(axes[1])
    if groups == 1 or split == 1:
        return shard.constrain(kernel, *axes)
    rows, columns = kernel.shape
    parted = shard.constrain(kernel.reshape(rows, groups, split, -1), axes[0], None, axes[1], None)
    return shard.constrain(parted.swapaxes(1, 2).reshape(rows, columns), *axes)


def to_rest(
    kernel: Float[Array, "in_dim out_dim"], axes: tuple[str | None, str | None], groups: int
) -> Float[Array, "in_dim out_dim"]:
    """The inverse of `to_use`: the order and the layout in which the parameter rests."""
    split = 1 if axes[1] is None else shard.ways(axes[1])
    if groups == 1 or split == 1:
        return shard.constrain(kernel, *(axes if groups == 1 else (axes[0], None)), table=shard.AT_REST)
    rows, columns = kernel.shape
    parted = shard.constrain(kernel.reshape(rows, split, groups, -1), axes[0], axes[1], None, None)
    return shard.constrain(parted.swapaxes(1, 2).reshape(rows, columns), axes[0], None, table=shard.AT_REST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def repeat(x: Float[Array, "*shape"], batch: int, dtype: str) -> Float[Array, "batch *shape"]:
    """`x` in `dtype` for every row of a batch. Its gradient is summed in f32 over rows and devices."""
    return jnp.broadcast_to(x.astype(dtype), (batch, *x.shape))


def _repeat_forward(x, batch, dtype):
    return repeat(x, batch, dtype), jnp.zeros((), x.dtype)


def _repeat_backward(batch, dtype, like, dy):
    return (dy.sum(axis=0, dtype=jnp.float32).astype(like.dtype),)


repeat.defvjp(_repeat_forward, _repeat_backward)
