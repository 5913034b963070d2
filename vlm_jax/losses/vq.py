"""Vector quantisation: the nearest code of each feature, gradients past the choice, and the losses of VQ-VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from .inputs import vary, varying, wide
from .latents import check_floating, check_latents, check_same_shape, check_tile, global_mean, look_up
from .search import best_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

SMALLEST_NORM = 1e-6


class Quantised(NamedTuple):
    """What a quantiser makes of features. The last two are None where there is no codebook to learn."""

    codes: Int[Array, "tokens"]
    vectors: Float[Array, "tokens dim"]  # what the decoder sees: the codes' vectors, whose gradient goes to the encoder
    z: Float[Array, "tokens dim"] | None = None  # what was compared with the codebook,
    nearest: Float[Array, "tokens dim"] | None = None  # and what was found there: arguments of `vq_losses`


def nearest_code(
    z: Float[Array, "tokens dim"],
    codebook: Float[Array, "codes dim"],
    *,
    cosine: bool = False,
    tile: tuple[int, int] = (1024, 4096),
) -> Int[Array, "tokens"]:
    """argmin_k |z - e_k| of each feature, the first of equally near ones; int32.

    |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and the first term does not matter. Distances are made in tiles and only the
    best so far is kept; f32 features are compared in f32 on every device.

    Args:
      z: features, bf16 or f32.
      codebook: one code a row.
      cosine: the code of the smallest angle instead (ViT-VQGAN, Yu et al. 2021, arXiv:2110.04627).
      tile: most tokens and codes of a tile.

    Raises:
      ValueError: at trace time, for shapes or dtypes that cannot be.
    """
    most = check_tile(tile)
    z, codebook = jax.lax.stop_gradient(check_latents(z, codebook))
    if cosine:
        codebook, bias = unit(codebook), jnp.zeros(codebook.shape[0])
    else:
        bias = -jnp.sum(jnp.square(codebook.astype(wide(codebook.dtype))), axis=1) / 2
    return best_code(z, codebook, bias, most)


def quantise(
    z: Float[Array, "tokens dim"],
    codebook: Float[Array, "codes dim"],
    *,
    gradient: str = "straight_through",
    cosine: bool = False,
    tile: tuple[int, int] = (1024, 4096),
) -> Quantised:
    """The nearest code of each feature. No code depends on other tokens, so that nothing changes inside `shard_map`.

    Args:
      z: features of the encoder.
      codebook: one code a row. It learns from `vq_losses(found.z, found.nearest)[0]`, or by `codebook.update`.
      gradient: how that of `vectors` gets to `z`: "straight_through" (van den Oord et al. 2017, arXiv:1711.00937,
        section 3.2), as it is; "rotation" (Fifty et al. 2024, arXiv:2410.06424), turned and stretched as the feature
        was to become its code.
      cosine: compare directions alone: `z`, `nearest` and `vectors` are unit vectors then.
      tile: most tokens and codes of a tile of the search.

    Raises:
      ValueError: at trace time, for shapes or dtypes that cannot be, or another `gradient`.
    """
    past_choice = gradient_of(gradient)
    z, codebook = check_latents(z, codebook)
    codes = nearest_code(z, codebook, cosine=cosine, tile=tile)
    nearest = look_up(codebook, codes)
    if cosine:
        z, nearest = unit(z), unit(nearest)
    return Quantised(codes, past_choice(z, nearest), z, nearest)


def vq_losses(
    z: Float[Array, "*batch dim"],
    nearest: Float[Array, "*batch dim"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Codebook loss |sg(z) - e|^2, which moves the codes, and commitment loss |z - sg(e)|^2, which moves the encoder.

    Both are means over all elements of the global batch. VQ-VAE adds the first and beta (0.25) times the second
    (arXiv:1711.00937, equation 3); with a codebook of running means only the second is wanted.

    Args:
      z: `Quantised.z`.
      nearest: `Quantised.nearest`; not `vectors`, which have no gradient to the codebook.
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the tokens are split over.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be.
    """
    z, nearest = check_floating("z", z), check_floating("nearest", nearest)
    check_same_shape(z=z, nearest=nearest)
    z, nearest = (x.astype(wide(x.dtype)) for x in (z, nearest))
    stop = jax.lax.stop_gradient
    return global_mean((stop(z) - nearest) ** 2, axis_name), global_mean((z - stop(nearest)) ** 2, axis_name)


def unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """x / |x|, and 0 for 0."""
    squares = jnp.sum(jnp.square(x.astype(wide(x.dtype))), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_NORM**2))).astype(x.dtype)


def gradient_of(name: str):
    """`f(z, vectors)` of that name: exactly `vectors`, in the type of `z`, with the gradient going to `z`."""
    if name not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}; got {name!r}.")
    return lambda z, vectors: GRADIENTS[name](z, vary(vectors.astype(z.dtype), varying(z)))


@jax.custom_jvp
def _straight_through(z, vectors):
    return vectors


@_straight_through.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


@jax.custom_jvp
def _rotation(z, vectors):
    return vectors


@_rotation.defjvp
def _(primals, tangents):
    """R z |q| / |z| = q with R = I - 2 r r^T + 2 q^ z^T of unit vectors, r halfway between z and q."""
    (z, q), (dz, _) = primals, tangents
    wider = wide(z.dtype)
    a, b, dx = z.astype(wider), q.astype(wider), dz.astype(wider)
    along = lambda x: jnp.sum(x * dx, axis=-1, keepdims=True)
    norm = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)
    stretch, a, b = norm(b) / norm(a), unit(a), unit(b)
    r = unit(a + b)
    return q, (stretch * (dx - 2 * r * along(r) + 2 * b * along(a))).astype(z.dtype)


GRADIENTS = {"straight_through": _straight_through, "rotation": _rotation}
