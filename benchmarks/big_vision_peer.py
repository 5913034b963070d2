"""A SigLIP training step as big_vision makes it, restated on current Flax: its modules no longer run on current jax.

Restated from big_vision at commit 0127fb6 (models/vit.py, models/proj/image_text, trainers/proj/image_text/siglip.py):
Flax Linen layers in f32 but for matrix products in `dtype_mm`, three projections a head, MAP head, positions of the
stem's type, loss of the whole matrix of pairs left to the partitioner, data parallel. The optimizer is the one it is
compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Mlp(nn.Module):
    hidden: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class Block(nn.Module):
    hidden: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(y, y)
        return x + Mlp(self.hidden, self.dtype)(nn.LayerNorm()(x)), None


class Encoder(nn.Module):
    depth: int
    hidden: int
    heads: int
    dtype: Any
    scan: bool

    @nn.compact
    def __call__(self, x):
        sizes = (self.hidden, self.heads, self.dtype)
        if self.scan:  # with everything computed again in the backward pass, its default
            block = nn.remat(Block, prevent_cse=False, policy=jax.checkpoint_policies.nothing_saveable)
            scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = scanned(*sizes)(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block(*sizes)(x, None)
        return nn.LayerNorm()(x)


class MapHead(nn.Module):
    hidden: int
    heads: int

    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]), x.dtype)
        y = nn.MultiHeadDotProductAttention(self.heads)(jnp.tile(probe, (len(x), 1, 1)), x)
        return (y + Mlp(self.hidden)(nn.LayerNorm()(y)))[:, 0]


class SigLIP(nn.Module):
    """Two towers of one size; returns unit-norm embeddings, scale and bias."""

    width: int = 768
    depth: int = 12
    hidden: int = 3072
    heads: int = 12
    patch: int = 16
    vocab: int = 32_000
    dtype: Any = jnp.bfloat16
    scan: bool = False

    @nn.compact
    def __call__(self, image, text):
        encoder = functools.partial(Encoder, self.depth, self.hidden, self.heads, self.dtype, self.scan)
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", dtype=self.dtype)(image.astype(self.dtype))
        x = x.reshape(len(x), -1, self.width)
        x = x + self._positions("image_positions", x)
        image = MapHead(self.hidden, self.heads)(encoder()(x))

        y = nn.Embed(self.vocab, self.width)(text)
        y = y + self._positions("text_positions", y)
        text = nn.Dense(self.width)(encoder()(y)[:, -1])
        unit = lambda z: z / (jnp.linalg.norm(z, axis=1, keepdims=True) + 1e-8)
        scale = jnp.exp(self.param("t", nn.initializers.constant(2.3), (1,)))
        return unit(image), unit(text), scale, self.param("b", nn.initializers.constant(-10.0), (1,))

    def _positions(self, name: str, x):
        return self.param(name, nn.initializers.normal(self.width**-0.5), (1, *x.shape[1:]), x.dtype)


def train_step(model: SigLIP, tx: optax.GradientTransformation) -> Callable:
    """`((params, opt), batch) -> ((params, opt), metrics)`."""

    def loss_of(params, batch):
        image = batch["image"].astype(jnp.float32) / 127.5 - 1
        image, text, scale, bias = model.apply({"params": params}, image, batch["text"])
        logits = image @ text.T * scale + bias
        signs = 2 * jnp.eye(len(logits)) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum(axis=-1).mean()

    def update(state, batch):
        params, opt = state
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, opt = tx.update(gradients, opt, params)
        params = optax.apply_updates(params, updates)
        norms = {name: optax.global_norm(x) for name, x in (("g", gradients), ("p", params), ("u", updates))}
        return (params, opt), {"loss": loss, **norms}

    return update


def lower(model: SigLIP, make_tx: Callable, batch: dict[str, jax.ShapeDtypeStruct], mesh: Mesh):
    """The step lowered for `mesh`: parameters on every device, `batch` split over all axes."""
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(mesh.axis_names))
    place = lambda tree, sharding: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
    small = [jnp.zeros((1, *batch[name].shape[1:]), batch[name].dtype) for name in ("image", "text")]
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *small))["params"]
    tx = make_tx(params)
    state = (params, jax.eval_shape(tx.init, params))
    step = jax.jit(train_step(model, tx), donate_argnums=0, out_shardings=(jax.tree.map(lambda _: whole, state), whole))
    return step.lower(place(state, whole), place(batch, rows))
