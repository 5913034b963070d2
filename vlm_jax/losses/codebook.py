"""Codebooks that learn by running means of the global batch, not by gradient.

The state is a dict: `embedding` [codes, dim], which is what `quantise` takes, and the running means that it is the
quotient of, `count` [codes], uses a batch, and `sum` [codes, dim]. All are f32 and the same on every device. In each
step quantise with the codebook as it was, then `update`, then `revive`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .inputs import check_axes
from .latents import check_codes, check_floating, check_latents, first_row
from .vq import nearest_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray

    State = dict[str, Array]
    Axes = str | tuple[str, ...] | None


def init(key: PRNGKeyArray, codes: int, dim: int) -> State:
    """Codes uniform in +-1/codes, as VQGAN starts them, each as if used once."""
    if codes < 1 or dim < 1:
        raise ValueError(f"a codebook must have at least one code and one dim; got {codes} and {dim}.")
    embedding = jax.random.uniform(key, (codes, dim), minval=-1 / codes, maxval=1 / codes)
    return _state(embedding, jnp.ones(codes))


def update(
    state: State,
    z: Float[Array, "tokens dim"],
    codes: Int[Array, "tokens"],
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    axis_name: Axes = None,
) -> State:
    """Moves the running means by one batch (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1).

    N <- decay N + (1 - decay) n, m <- decay m + (1 - decay) sum z, e = m / N', where N' is N smoothed,
    (N + eps) / (sum N + codes eps) sum N. Counts n and sums are those of the global batch.

    Args:
      z: `Quantised.z`: what was compared with the codebook; unit vectors where that was by cosine.
      codes: what was found for them. A code that the codebook does not have counts for none.
      axis_name: inside `jax.shard_map`, the mesh axis, or axes, that the tokens are split over.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or a decay out of [0, 1].
    """
    z, codes, axes = _check(state, z, codes, axis_name)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1]; got {decay}.")
    n, total = _counts_and_sums(z, codes, state["count"].shape[0], axes)
    count = decay * state["count"] + (1 - decay) * n
    mean_sum = decay * state["sum"] + (1 - decay) * total
    uses = count.sum()
    smoothed = (count + eps) / (uses + count.shape[0] * eps) * uses
    return {"embedding": mean_sum / smoothed[:, None], "count": count, "sum": mean_sum}


def revive(
    state: State,
    z: Float[Array, "tokens dim"],
    key: PRNGKeyArray,
    *,
    threshold: float = 1.0,
    axis_name: Axes = None,
) -> State:
    """Moves codes that are used less than `threshold` times a batch to random rows of it (Jukebox, arXiv:2005.00341).

    The running means of such a code begin again at its row, as if used `threshold` times: else the next `update`
    would take it back. Rows are drawn by their number in the global batch, without repetition while there are as
    many rows as codes, so that the result is the same on any number of devices.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be.
    """
    z, _, axes = _check(state, z, None, axis_name)
    rows = _random_rows(z, key, state["count"].shape[0], axes)
    dead = state["count"] < threshold
    reborn = _state(rows, jnp.full_like(state["count"], threshold))
    return {name: jnp.where(dead if x.ndim == 1 else dead[:, None], reborn[name], x) for name, x in state.items()}


def kmeans(
    z: Float[Array, "tokens dim"],
    key: PRNGKeyArray,
    codes: int,
    *,
    iterations: int = 10,
    axis_name: Axes = None,
    tile: tuple[int, int] = (1024, 4096),
) -> State:
    """A codebook to start from: Lloyd's algorithm on the global batch, from random rows of it.

    A cluster that loses all its rows stays where it is, as if used once.

    Raises:
      ValueError: at trace time, for shapes, dtypes or axes that cannot be, or fewer rows than codes.
    """
    z = jax.lax.stop_gradient(check_floating("z", z, "tokens dim"))
    axes = check_axes("axis_name", axis_name, z=z)
    rows = z.shape[0] * (jax.lax.axis_size(axes) if axes else 1)
    if not 1 <= codes <= rows:
        raise ValueError(f"kmeans of {rows} rows makes 1 to {rows} codes; got {codes}.")

    def step(_, state):
        n, total = _counts_and_sums(z, nearest_code(z, state["embedding"], tile=tile), codes, axes)
        lost = n[:, None] == 0
        return _state(jnp.where(lost, state["embedding"], total / jnp.maximum(n, 1)[:, None]), jnp.maximum(n, 1))

    start = _state(_random_rows(z, key, codes, axes), jnp.ones(codes))
    return jax.lax.fori_loop(0, iterations, step, start)


def count_codes(codes: Int[Array, "*batch"], size: int, *, axis_name: Axes = None) -> Float[Array, "codes"]:
    """How often each of `size` codes occurs in the global batch, f32; those out of range do not count."""
    codes = jnp.asarray(codes)
    axes = check_axes("axis_name", axis_name, codes=codes)
    return _total(jax.ops.segment_sum(jnp.ones(codes.size), codes.reshape(-1), size), axes)


def usage(count: Float[Array, "codes"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of counts: which fraction of the codes is used, and perplexity, exp of the entropy: 1 to the number of codes."""
    count = check_floating("count", count, "codes")
    share = count / jnp.maximum(count.sum(), 1e-30)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)))
    return jnp.mean(count > 0, dtype=count.dtype), jnp.exp(entropy)


def _state(embedding, count) -> State:
    return {"embedding": embedding, "count": count, "sum": embedding * count[:, None]}


def _counts_and_sums(z, codes, size: int, axes) -> tuple[jax.Array, jax.Array]:
    """Of each code in the global batch, how many features chose it, and their sum; f32."""
    n = jax.ops.segment_sum(jnp.ones(z.shape[0]), codes, size)
    total = jax.ops.segment_sum(z.astype(jnp.float32), codes, size)
    return _total((n, total), axes)


def _random_rows(z, key, number: int, axes) -> jax.Array:
    """Rows of the global batch, f32, drawn without repetition while there are enough."""
    batch, first = z.shape[0], first_row(z.shape[0], axes)
    rows = batch * (jax.lax.axis_size(axes) if axes else 1)
    here = jax.random.permutation(key, rows)[jnp.arange(number) % rows] - first
    mine = (here >= 0) & (here < batch)
    return _total(jnp.where(mine[:, None], z[jnp.clip(here, 0, batch - 1)].astype(jnp.float32), 0), axes)


def _total(tree, axes):
    return jax.lax.psum(tree, axes) if axes else tree


def _check(state, z, codes, axis_name):
    z, _ = check_latents(z, state["embedding"])
    if codes is not None:
        codes = check_codes(codes, state["count"].shape[0])
        if codes.shape != z.shape[:1]:
            raise ValueError(f"codes must be of shape {z.shape[:1]}, one for each row of z; got {codes.shape}.")
    return jax.lax.stop_gradient(z), codes, check_axes("axis_name", axis_name, z=z)
