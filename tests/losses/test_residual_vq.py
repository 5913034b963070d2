"""Residual quantisation: stage by stage in numpy, its gradients, and codebooks of all stages that learn together."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses import codebook, residual_vectors, residual_vq, vq_losses


def problem():
    rng = np.random.default_rng(0)
    scale = np.array([1, 0.5, 0.25], np.float32)[:, None, None]
    return rng.standard_normal((24, 4)).astype(np.float32), scale * rng.standard_normal((3, 8, 4)).astype(np.float32)


def test_each_stage_quantises_what_is_left(pairs):
    z, codebooks = problem()
    found = jax.jit(functools.partial(residual_vq, tile=(7, 3)))(z, codebooks)
    left = z
    for stage, codes in enumerate(codebooks):
        nearest = np.square(left[:, None] - codes[None]).sum(-1).argmin(axis=1)
        np.testing.assert_array_equal(found.codes[:, stage], nearest)
        pairs.assert_close(found.z[stage], left)
        left = left - codes[nearest]
    pairs.assert_close(found.vectors, z - left)
    pairs.assert_close(jax.jit(residual_vectors)(codebooks, found.codes), z - left)
    pairs.assert_close(residual_vectors(codebooks, np.asarray(found.codes)[:, :1]), codebooks[0][found.codes[:, 0]])


def test_gradients(pairs):
    """To z: straight through, and the commitment of every stage. To a codebook: of its own stage alone."""
    z, codebooks = problem()

    def loss(z, codebooks):
        found = residual_vq(z, codebooks)
        codebook_loss, commitment = vq_losses(found.z, found.nearest)
        return found.vectors.sum() + codebook_loss + 0.25 * commitment

    d_z, d_codebooks = jax.jit(jax.grad(loss, (0, 1)))(z, codebooks)
    found = jax.jit(residual_vq)(z, codebooks)
    apart = 2 * np.asarray(found.z - found.nearest) / found.z.size
    pairs.assert_close(d_z, 1 + 0.25 * apart.sum(axis=0))
    want = np.zeros_like(codebooks)
    for stage in range(3):
        np.add.at(want[stage], found.codes[:, stage], -apart[stage])
    pairs.assert_close(d_codebooks, want)


def test_codebooks_of_all_stages_learn_at_once(pairs):
    z, codebooks = problem()
    found = jax.jit(residual_vq)(z, codebooks)
    states = {"embedding": jnp.asarray(codebooks), "count": jnp.ones((3, 8)), "sum": jnp.asarray(codebooks)}
    got = jax.jit(jax.vmap(codebook.update))(states, found.z, found.codes.T)
    update = jax.jit(codebook.update)
    for stage in range(3):
        one = update({name: x[stage] for name, x in states.items()}, found.z[stage], found.codes[:, stage])
        pairs.assert_close({name: x[stage] for name, x in got.items()}, one)


def test_bad_input_is_refused():
    z, codebooks = problem()
    with pytest.raises(ValueError, match=r"codebooks must be \[stages, codes, dim\]; got \(8, 4\)"):
        residual_vq(z, codebooks[0])
    with pytest.raises(ValueError, match=r"same dim; got \(24, 3\) and \(8, 4\)"):
        residual_vq(z[:, :3], codebooks)
    with pytest.raises(ValueError, match=r"\[..., up to 3 stages\]; got \(24, 4\)"):
        residual_vectors(codebooks, np.zeros((24, 4), int))
    with pytest.raises(ValueError, match=r"codes must be in \[0, 8\); got 8"):
        residual_vectors(codebooks, np.full((24, 3), 8))
