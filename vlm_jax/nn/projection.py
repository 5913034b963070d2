"""The head of self-distillation: from features to scores of prototypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.nn import shard
from vlm_jax.nn.activations import gelu
from vlm_jax.nn.embed import VocabularyHead
from vlm_jax.nn.initializers import Initializers
from vlm_jax.nn.layers import linear
from vlm_jax.nn.mlp import AXES1, AXES2


class ProjectionHead(nnx.Module):
    """A perceptron to a bottleneck, and cosines with prototypes (DINO: Caron et al. 2021, arXiv:2104.14294, section 3).

    It has one hidden layer, where DINO's has two.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        *,
        dtype: str,
        init: Initializers,
        rngs: nnx.Rngs,
    ):
        self.fc1 = linear(width, hidden, axes=AXES1, init=init.fc1, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, bottleneck, axes=AXES2, init=init.fc2, dtype=dtype, rngs=rngs)
        self.head = VocabularyHead(prototypes, bottleneck, rngs=rngs)

    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time prototypes"]:
        """f32 cosines."""
        x = _unit(self.fc2(gelu(self.fc1(x))))
        prototypes = _unit(shard.constrain(self.head.embedding[...], "vocab", None))
        return jnp.einsum("btd,kd->btk", x, prototypes.astype(x.dtype), preferred_element_type=jnp.float32)


def _unit(x: Array) -> Array:
    square = jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))).astype(x.dtype)
