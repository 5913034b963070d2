"""The ways to compute a contrastive loss of the global batch, each as good as its idea allows.

`dense` is what big_vision does, `all-gather, chunks` and `differentiated ring` what a JAX user writes against its
memory. All multiply features as they are and reduce in f32, as the losses of `vlm_jax` do, so that only the way
differs; all checkpoint the logits where they are cut into parts, without which the parts would be kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import infonce_loss, sigmoid_loss

AXIS = "data"
CHUNK = 2048  # texts at a time, or the local batch where that is more: fewer leave the matrix unit idle
OURS = "vlm_jax"
SCALARS = {"sigmoid": 2, "infonce": 1}  # scale and bias; scale


def _similarities(rows, columns):
    return jnp.einsum("id,jd->ij", rows, columns, preferred_element_type=jnp.float32)


# A fold goes on with what it knows of each row, [rows], by the columns that begin at a place in the batch.


def _fold_sigmoid(scale, bias, known, rows, columns, row_start, column_start):
    logits = scale * _similarities(rows, columns) + bias
    places = [start + jnp.arange(len(x)) for start, x in ((row_start, rows), (column_start, columns))]
    positive = places[0][:, None] == places[1][None, :]
    return known + jax.nn.softplus(jnp.where(positive, -logits, logits)).sum(axis=1)


def _fold_log_sum_exp(scale, known, rows, columns, row_start, column_start):
    return jnp.logaddexp(known, jax.nn.logsumexp(scale * _similarities(rows, columns), axis=1))


# The ways round the batch, inside shard_map.


def _ring(fold, start, rows, columns):
    devices, here, batch = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS), len(rows)
    to = [(i, (i + 1) % devices) for i in range(devices)]

    def hop(carry, k):
        known, columns = carry
        known = jax.checkpoint(fold)(known, rows, columns, here * batch, (here - k) % devices * batch)
        return (known, jax.lax.ppermute(columns, AXIS, to)), None

    known = jax.lax.pcast(jnp.full(batch, start), AXIS, to="varying")
    return jax.lax.scan(hop, (known, columns), jnp.arange(devices))[0][0]


def _gather(fold, start, rows, columns):
    batch, everything = len(rows), jax.lax.all_gather(columns, AXIS, tiled=True)
    chunk = min(len(everything), max(CHUNK, batch))

    def one(known, column_start):
        these = jax.lax.dynamic_slice_in_dim(everything, column_start, chunk)
        return fold(known, rows, these, jax.lax.axis_index(AXIS) * batch, column_start), None

    known = jax.lax.pcast(jnp.full(batch, start), AXIS, to="varying")
    return jax.lax.scan(jax.checkpoint(one), known, jnp.arange(0, len(everything), chunk))[0]


def _sigmoid(way, image, text, scale, bias):
    losses = way(functools.partial(_fold_sigmoid, scale, bias), 0.0, image, text)
    return jax.lax.pmean(losses.mean(), AXIS)


def _infonce(way, image, text, scale):
    fold = functools.partial(_fold_log_sum_exp, scale)
    both = way(fold, -1e30, image, text) + way(fold, -1e30, text, image)
    partners = scale * jnp.sum(image * text, axis=1, dtype=jnp.float32)
    return jax.lax.pmean(jnp.mean(both / 2 - partners), AXIS)


def _dense_sigmoid(image, text, scale, bias):
    return jnp.mean(_fold_sigmoid(scale, bias, 0.0, image, text, 0, 0))


def _dense_infonce(image, text, scale):
    logits = scale * _similarities(image, text)
    both = jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1)
    return jnp.mean(both / 2 - jnp.diagonal(logits))


LOSSES: dict[str, dict[str, Callable]] = {
    "sigmoid": {
        OURS: functools.partial(sigmoid_loss, axis_name=AXIS),
        "differentiated ring": functools.partial(_sigmoid, _ring),
        "all-gather, chunks": functools.partial(_sigmoid, _gather),
        "dense": _dense_sigmoid,
    },
    "infonce": {
        OURS: functools.partial(infonce_loss, axis_name=AXIS),
        "differentiated ring": functools.partial(_infonce, _ring),
        "all-gather, chunks": functools.partial(_infonce, _gather),
        "dense": _dense_infonce,
    },
}
VARIANTS = tuple(LOSSES["sigmoid"])


def loss_of(loss: str, variant: str, mesh) -> Callable:
    """`f(image, text, scale[, bias])` of the global batch; `dense` is left to the partitioner of XLA."""
    f = LOSSES[loss][variant]
    if variant == "dense":
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=(P(AXIS), P(AXIS), *[P()] * SCALARS[loss]), out_specs=P())


def gradients(loss: str, variant: str, mesh: Mesh) -> Callable:
    """The loss and all its gradients; those of features lie as the features do."""
    arguments = 2 + SCALARS[loss]
    split, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
    out = (whole, (split, split, *[whole] * SCALARS[loss]))
    return jax.jit(jax.value_and_grad(loss_of(loss, variant, mesh), tuple(range(arguments))), out_shardings=out)


def abstract_inputs(loss: str, batch: int, dim: int, dtype, mesh: Mesh | None = None) -> list[jax.ShapeDtypeStruct]:
    """Shapes of features and scalars, over `mesh` where one is given."""
    place = (lambda *spec: NamedSharding(mesh, P(*spec))) if mesh is not None else lambda *spec: None
    feature = jax.ShapeDtypeStruct((batch, dim), dtype, sharding=place(AXIS))
    return [feature] * 2 + [jax.ShapeDtypeStruct((), jnp.float32, sharding=place())] * SCALARS[loss]


def kept_for_backward(loss: str, variant: str, devices: int, batch: int, dim: int, dtype) -> int:
    """Bytes a device keeps from the forward to the backward pass: all that the function `jax.vjp` returns holds."""
    mesh = jax.sharding.AbstractMesh((devices,), (AXIS,))
    kept = []

    def forward(*arguments):
        value, backward = jax.vjp(loss_of(loss, variant, mesh), *arguments)
        kept.extend({id(x): x for x in jax.tree.leaves(backward) if hasattr(x, "dtype")}.values())
        return value

    jax.eval_shape(forward, *abstract_inputs(loss, batch, dim, dtype))
    return sum(x.size * x.dtype.itemsize for x in kept) // devices
