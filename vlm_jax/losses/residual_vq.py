"""Residual vector quantisation: each codebook quantises what those before it left over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from .latents import check_codes, check_floating, look_up
from .vq import Quantised, gradient_of, nearest_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def residual_vq(
    z: Float[Array, "tokens dim"],
    codebooks: Float[Array, "stages codes dim"],
    *,
    gradient: str = "straight_through",
    tile: tuple[int, int] = (1024, 4096),
) -> Quantised:
    """Sums one code of every codebook (SoundStream, Zeghidour et al. 2021, arXiv:2107.03312, algorithm 1).

    Returns:
      `codes` [tokens, stages] and `vectors` [tokens, dim], the sums, whose gradient goes to `z` as in `quantise`; of
      each stage, the residual `z` [stages, tokens, dim] and its code's vector `nearest`. `vq_losses(z, nearest)` are
      means over the stages too; `jax.vmap` makes one-codebook functions such as `codebook.update` work on all of them.

    Raises:
      ValueError: at trace time, for shapes or dtypes that cannot be, or another `gradient`.
    """
    past_choice = gradient_of(gradient)
    z, codebooks = check_floating("z", z, "tokens dim"), check_floating("codebooks", codebooks, "stages codes dim")

    def stage(residual, codebook):
        codes = nearest_code(residual, codebook, tile=tile)
        nearest = look_up(codebook, codes).astype(residual.dtype)
        return residual - jax.lax.stop_gradient(nearest), (codes, residual, nearest)

    _, (codes, residuals, nearest) = jax.lax.scan(stage, z, codebooks)
    return Quantised(codes.T, past_choice(z, nearest.sum(axis=0)), residuals, nearest)


def residual_vectors(
    codebooks: Float[Array, "stages codes dim"], codes: Int[Array, "*batch stages"]
) -> Float[Array, "*batch dim"]:
    """What codes stand for: the sum over the stages. Fewer stages than codebooks give a coarser sum.

    Raises:
      ValueError: for more stages than codebooks or, outside of `jax.jit`, codes out of range.
    """
    codebooks = check_floating("codebooks", codebooks, "stages codes dim")
    codes = check_codes(codes, codebooks.shape[1])
    if not codes.ndim or not 1 <= codes.shape[-1] <= codebooks.shape[0]:
        raise ValueError(f"codes must be [..., up to {codebooks.shape[0]} stages]; got {codes.shape}.")
    return sum(look_up(codebooks[stage], codes[..., stage]) for stage in range(codes.shape[-1]))
