"""Splash attention on the fused projection against the plain formula, in the interpreter."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.nn.kernels.plain import plain_attention
from vlm_jax.nn.kernels.splash import long_attention


@pytest.mark.parametrize("segments, causal, valid", [(False, False, 190), (True, True, 200)])
def test_equals_the_formula(segments, causal, valid):
    """Padded from 200 to 256 tokens; queries of segment -1 see nothing."""
    random = np.random.default_rng(0)
    qkv, out_bar = (jnp.asarray(random.normal(size=(2, 200, width)), jnp.float32) for width in (384, 128))
    ids = tuple(jnp.asarray(random.integers(first, 3, (2, 200)), jnp.int32) for first in (-1, 0)) if segments else None
    options = {"num_heads": 2, "causal": causal, "valid": valid}
    results = []
    for f in (functools.partial(long_attention, interpret=True), plain_attention):
        out, vjp = jax.vjp(lambda x, f=f: f(x, ids, **options), qkv)
        results.append((out, vjp(out_bar)[0]))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, atol=1e-5)
