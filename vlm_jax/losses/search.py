"""The best code of each token, tile by tile, so that the scores of all pairs are never in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .inputs import vary, varying, wide
from .labels import cast_tile, where_counts
from .tiles import Fold, over_tiles

# Below any score, and finite, so that differences of two of them are numbers.
LOWEST = -1e30


def best_of(scores: jax.Array, codes: jax.Array) -> dict[str, jax.Array]:
    """Of a tile of scores [codes, tokens], the best of each token and the first code that has it."""
    return {"score": scores.max(axis=0), "code": codes[scores.argmax(axis=0)]}


def better(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The better of two such; of equal ones the first."""
    return {name: jnp.where(b["score"] > a["score"], b[name], a[name]) for name in a}


def worst(like: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What any other is better than."""
    return {"score": jnp.full_like(like["score"], LOWEST), "code": jnp.zeros_like(like["code"])}


def best_code(x: jax.Array, codebook: jax.Array, bias: jax.Array, most: tuple[int, int]) -> jax.Array:
    """argmax_k x.codebook_k + bias_k of each row of `x`; int32 [tokens]. `most` codes and tokens make a tile.

    Codes are the rows of the tiles and tokens the columns: all codes pass by one tile of tokens after the other.
    """
    dtype = jnp.promote_types(x.dtype, codebook.dtype)

    def tile(rows, columns, counts):
        codes, tokens = cast_tile(rows["x"], dtype), cast_tile(columns["x"], dtype)
        # The choice among near codes is the result: f32 must not be rounded to bf16, as a TPU does by default.
        scores = jnp.einsum("kd,nd->kn", codes, tokens, precision="highest", preferred_element_type=wide(dtype))
        return {}, best_of(where_counts(counts, scores + rows["bias"][:, None], LOWEST), rows["id"])

    rows = {"x": codebook, "bias": bias.astype(wide(dtype)), "id": jnp.arange(codebook.shape[0]), "counts": None}
    columns = {"x": x, "counts": None}
    everywhere = varying(x) | varying(codebook) | varying(bias)
    start = {"score": jnp.zeros(x.shape[0], wide(dtype)), "code": jnp.zeros(x.shape[0], jnp.int32)}
    start = jax.tree.map(lambda a: vary(a, everywhere), worst(start))
    return over_tiles(tile, BEST, rows, columns, {}, start, most)[1]["code"]


BEST = Fold(lambda a, b: better(a, b) if a else a, lambda a: worst(a) if a else a)
