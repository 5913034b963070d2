"""Gradients of a batch that is worked through in microbatches.

Losses that are sums over examples are averaged. A contrastive loss compares the examples with one another, so that its
mean over microbatches would be the loss of smaller batches: its features are cached instead (GradCache, Gao et al.
2021, arXiv 2101.06983, section 3), and the result is that of the whole batch for one more forward pass.

Random numbers are drawn by the row of the global batch, so they are the same in any number of microbatches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from vlm_jax.mesh import BATCH_AXES
from vlm_jax.tasks.base import Batch, Context, Task

Tree = Any
MakeVariables = Callable[[Tree, Tree], dict]


class Gradients(NamedTuple):
    """What an update needs of a batch: loss, metrics, the new state, gradients of the trained parameters.

    `weight` is what the mean of a microbatch counts for in that of the batch.
    """

    loss: Float[Array, ""]
    metrics: dict[str, Array]
    state: Tree
    grads: Tree
    weight: Float[Array, ""] | float = 1.0


def whole(task: Task, variables: MakeVariables, params: Tree, state: Tree, batch: Batch, ctx: Context) -> Gradients:
    """All of the batch at once. `variables(params, state)` makes the variables that the task sees."""
    (loss, aux), grads = jax.value_and_grad(
        lambda p: task.loss(variables(p, state), batch, ctx), has_aux=True
    )(params)  # fmt: skip
    return Gradients(loss, aux["metrics"], aux["state"], grads, jnp.float32(aux.get("weight", 1.0)))


def averaged(
    task: Task, variables: MakeVariables, params: Tree, state: Tree, batch: Batch, ctx: Context, parts: int
) -> Gradients:
    """Means of loss, metrics and gradients over `parts` microbatches; the state is threaded through them in order.

    A microbatch counts by its `aux["weight"]` where the task gives one, such as how many tokens its mean is of.
    """

    def one(state, part):
        found = whole(task, variables, params, state, part["batch"], ctx.at(part["rows"]))
        weighed = jax.tree.map(lambda x: found.weight * x, (found.loss, found.metrics, found.grads))
        return found.state, (weighed, found.weight)

    def add(carry, part):
        state, sums = carry
        state, new = one(state, part)
        return (state, jax.tree.map(jnp.add, sums, new)), None

    split = _split_batch(batch, parts, ctx.mesh)
    zeros = _zeros(jax.eval_shape(one, state, jax.tree.map(lambda x: x[0], split))[1])
    (state, sums), _ = jax.lax.scan(add, (state, zeros), split)
    sums, weight = sums
    loss, metrics, grads = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), sums)
    return Gradients(loss, metrics, state, grads)


def cached(
    task: Task, variables: MakeVariables, params: Tree, state: Tree, batch: Batch, ctx: Context, parts: int
) -> Gradients:
    """The gradients of the whole batch of a contrastive task, with the activations of one microbatch at a time.

    Features of all microbatches without gradients, then one loss whose gradient goes to the features, then each
    microbatch again, from its features' gradient back to the parameters. Metrics are the loss's; those of the features
    are averaged.
    """
    split = _split_batch(batch, parts, ctx.mesh)

    def features_of(params, state, part):
        return task.features(variables(params, state), part["batch"], ctx.at(part["rows"]))

    def forward(state, part):
        features, aux = features_of(params, state, part)
        return aux["state"], (features, aux["metrics"])

    after, (features, metrics) = jax.lax.scan(forward, state, split)
    features = jax.tree.map(lambda x: merge_rows(x, ctx.mesh), features)

    def loss_of(params, features):
        return task.feature_loss(variables(params, after), features, batch, ctx)

    (loss, aux), (grads, cotangents) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(params, features)
    cotangents = jax.tree.map(lambda x: split_rows(x, parts, ctx.mesh), cotangents)

    def backward(carry, part):
        state, sums = carry
        _, pull, aux = jax.vjp(lambda p: features_of(p, state, part["of"]), params, has_aux=True)
        return (aux["state"], jax.tree.map(jnp.add, sums, pull(part["cotangents"])[0])), None

    (_, grads), _ = jax.lax.scan(backward, (state, grads), {"of": split, "cotangents": cotangents})
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return Gradients(loss, {**metrics, **aux["metrics"]}, aux["state"], grads)


def _split_batch(batch: Batch, parts: int, mesh: Mesh) -> Tree:
    rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
    return jax.tree.map(lambda x: split_rows(x, parts, mesh), {"batch": dict(batch), "rows": rows})


def split_rows(x: Shaped[Array, "batch ..."], parts: int, mesh: Mesh) -> Shaped[Array, "parts rows ..."]:
    """Part i takes rows i, i + parts, ...: no row changes device."""
    split = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)))


def merge_rows(x: Shaped[Array, "parts rows ..."], mesh: Mesh) -> Shaped[Array, "batch ..."]:
    """The inverse of `split_rows`."""
    merged = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return jax.lax.with_sharding_constraint(merged, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))


def _zeros(shapes: Tree) -> Tree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
