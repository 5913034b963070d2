"""What tasks that predict tokens share: their loss over a sharded batch, and the likelihood of given tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vlm_jax import losses
from vlm_jax.mesh import BATCH_AXES
from vlm_jax.nn import shard

IGNORED = -1


def mean_loss(
    hidden: Float[Array, "batch time dim"],
    head: Float[Array, "vocab dim"],
    labels: Int[Array, "batch time"],
    mesh: Mesh,
    *,
    z_loss: float = 0.0,
) -> Float[Array, ""]:
    """`losses.cross_entropy` over all tokens of the global batch whose label is not `IGNORED`.

    The vocabulary is split over `tensor` where it divides. Over `fsdp` the head is taken in parts of its width, as it
    rests where nothing else is configured; they are gathered in the type of `hidden`, and the gradient is scattered.
    """
    weights = jnp.ones_like(labels, jnp.float32)
    return weighted_loss(hidden, head, labels, weights, mesh, z_loss=z_loss)[0]


def weighted_loss(
    hidden: Float[Array, "batch time dim"],
    head: Float[Array, "vocab dim"],
    labels: Int[Array, "batch time"],
    weights: Float[Array, "batch time"],
    mesh: Mesh,
    *,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, "batch time"]]:
    """As `mean_loss`, where tokens count by their weights; and the cross-entropy of each, 0 where it is ignored."""
    split = head.shape[0] % mesh.shape["tensor"] == 0 and mesh.shape["tensor"] > 1
    in_parts = head.shape[1] % mesh.shape["fsdp"] == 0 and mesh.shape["fsdp"] > 1
    summed = jnp.promote_types(shard.grad_dtype(), hidden.dtype)

    def local(hidden, head, labels, weights):
        options = {"ignore": IGNORED, "z_loss": z_loss, "axis_name": BATCH_AXES, "return_losses": True}
        options |= {"vocab_axis_name": "tensor"} if split else {}
        if in_parts:
            head = _whole(jax.lax.pcast(head, "data", to="varying"), hidden.dtype, summed)
        flat = hidden.reshape(-1, hidden.shape[-1])
        loss, each = losses.cross_entropy(flat, head, labels.reshape(-1), weights=weights.reshape(-1), **options)
        return loss, each.reshape(labels.shape)

    rows = PartitionSpec(BATCH_AXES)
    vocabulary = PartitionSpec("tensor" if split else None, "fsdp" if in_parts else None)
    specs = {"in_specs": (rows, vocabulary, rows, rows), "out_specs": (PartitionSpec(), rows)}
    return jax.shard_map(local, mesh=mesh, **specs)(hidden, head, labels, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole(part: Float[Array, "vocab part"], dtype, summed) -> Float[Array, "vocab dim"]:
    """A matrix that rests in parts over `fsdp`, gathered in `dtype`; its gradient is scattered, summed in `summed`."""
    return jax.lax.all_gather(part.astype(dtype), "fsdp", axis=1, tiled=True).astype(part.dtype)


def _whole_forward(part, dtype, summed):
    return _whole(part, dtype, summed), jnp.zeros((), part.dtype)


def _whole_backward(dtype, summed, like, bar):
    scattered = jax.lax.psum_scatter(bar.astype(summed), "fsdp", scatter_dimension=1, tiled=True)
    return (scattered.astype(like.dtype),)


_whole.defvjp(_whole_forward, _whole_backward)


def log_likelihood(
    hidden: Float[Array, "batch time dim"], head: Float[Array, "vocab dim"], labels: Int[Array, "batch time"]
) -> Float[Array, " batch"]:
    """Of each row, the sum over labels that are not `IGNORED` of the logarithm of their probability."""

    def local(hidden, head, labels):
        flat = hidden.reshape(-1, hidden.shape[-1])
        _, each = losses.cross_entropy(flat, head, labels.reshape(-1), ignore=IGNORED, return_losses=True)
        return -each.reshape(labels.shape).sum(1)

    axes = [("batch", None, None), (None, None), ("batch", None)]
    return shard.per_shard(local, axes, ("batch",))(hidden, head, labels)
