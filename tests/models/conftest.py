import functools

import jax
import numpy as np
import pytest


@functools.cache
def _parameters(model):
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(leaf.dtype), abstract)


@pytest.fixture(scope="session")
def parameters():
    """A function from a model to random parameters, without the seconds that compiling its own `init` takes."""
    return _parameters
