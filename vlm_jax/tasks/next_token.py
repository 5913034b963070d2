"""What tasks that predict tokens share: their loss over a sharded batch, and the likelihood of given tokens."""

from __future__ import annotations

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

    The vocabulary is split over `tensor` where it divides.
    """
    split = head.shape[0] % mesh.shape["tensor"] == 0 and mesh.shape["tensor"] > 1

    def local(hidden, head, labels):
        options = {"ignore": IGNORED, "z_loss": z_loss, "axis_name": BATCH_AXES}
        options |= {"vocab_axis_name": "tensor"} if split else {}
        return losses.cross_entropy(hidden.reshape(-1, hidden.shape[-1]), head, labels.reshape(-1), **options)

    rows, vocabulary = PartitionSpec(BATCH_AXES), PartitionSpec("tensor" if split else None)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows, vocabulary, rows), out_specs=PartitionSpec())
    return sharded(hidden, head, labels)


def log_likelihood(
    hidden: Float[Array, "batch time dim"], head: Float[Array, "vocab dim"], labels: Int[Array, "batch time"]
) -> Float[Array, " batch"]:
    """Of each row, the sum over labels that are not `IGNORED` of the logarithm of their probability."""

    def local(hidden, head, labels):
        flat, named = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        _, lse = losses.cross_entropy(flat, head, named, ignore=IGNORED, return_log_sum_exp=True)
        rows = head[jnp.maximum(named, 0)].astype(flat.dtype)
        logits = jnp.einsum("td,td->t", flat, rows, preferred_element_type=jnp.float32)
        return jnp.where(named == IGNORED, 0, logits - lse).reshape(labels.shape).sum(1)

    axes = [("batch", None, None), (None, None), ("batch", None)]
    return shard.per_shard(local, axes, ("batch",))(hidden, head, labels)
