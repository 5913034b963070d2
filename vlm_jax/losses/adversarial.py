"""Losses of a patch discriminator and of the decoder it judges, and the weight that keeps the second in proportion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import wide
from .latents import check_floating, global_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def hinge_discriminator_loss(
    real: Float[Array, "*real"], fake: Float[Array, "*fake"], *, axis_name: str | tuple[str, ...] | None = None
) -> Float[Array, ""]:
    """1/2 [mean max(0, 1 - real) + mean max(0, 1 + fake)] of the logits of patches of real images and of decoded ones.

    (Lim and Ye 2017, arXiv:1705.02894; halved as in VQGAN, Esser et al. 2020, arXiv:2012.09841.) Decode behind
    `jax.lax.stop_gradient`. Means are over the global batch. Raises ValueError for dtypes or axes that cannot be.
    """
    real, fake = _wide("real", real), _wide("fake", fake)
    return (global_mean(jax.nn.relu(1 - real), axis_name) + global_mean(jax.nn.relu(1 + fake), axis_name)) / 2


def hinge_generator_loss(
    fake: Float[Array, "*fake"], *, axis_name: str | tuple[str, ...] | None = None
) -> Float[Array, ""]:
    """-mean of the logits of decoded patches, VQGAN's. Raises ValueError for dtypes or axes that cannot be."""
    return -global_mean(_wide("fake", fake), axis_name)


def non_saturating_generator_loss(
    fake: Float[Array, "*fake"], *, axis_name: str | tuple[str, ...] | None = None
) -> Float[Array, ""]:
    """Mean of -log sigmoid(fake) (Goodfellow et al. 2014, arXiv:1406.2661, section 3), whose gradient ends where the
    discriminator is deceived. Raises ValueError for dtypes or axes that cannot be."""
    return global_mean(jax.nn.softplus(-_wide("fake", fake)), axis_name)


def adaptive_weight(
    reconstruction: PyTree[Float[Array, "..."]],
    generator: PyTree[Float[Array, "..."]],
    *,
    eps: float = 1e-4,
    most: float = 1e4,
) -> Float[Array, ""]:
    """|d reconstruction| / (|d generator| + eps), at most `most`: the generator term's weight (arXiv:2012.09841).

    Args:
      reconstruction: gradient, by the kernel of the decoder's last layer, of what is reconstructed (L1 and perceptual).
      generator: gradient of the generator loss by the same. Both of the global batch; arrays or trees of them.

    Raises:
      ValueError: where the two are not gradients by the same parameters.
    """
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (reconstruction, generator)]
    if shapes[0] != shapes[1] or not jax.tree.leaves(reconstruction):
        raise ValueError(f"both gradients must be by the same parameters; got shapes {shapes[0]} and {shapes[1]}.")
    weight = _norm(reconstruction) / (_norm(generator) + eps)
    return jax.lax.stop_gradient(jnp.minimum(weight, most))


def _norm(tree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in map(jnp.asarray, jax.tree.leaves(tree))))


def _wide(name: str, logits) -> jax.Array:
    logits = check_floating(name, logits)
    return logits.astype(wide(logits.dtype))
