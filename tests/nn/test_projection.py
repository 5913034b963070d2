import jax
import numpy as np

from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.projection import ProjectionHead

from .random_parameters import random_parameters

HEAD = Functional(ProjectionHead, 6, 8, 4, 5, dtype="float32", init=initializers("jax", width=6, depth=1))
X = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)


def test_cosines_with_prototypes():
    params = random_parameters(HEAD)
    found = HEAD(params, X)
    hidden = jax.nn.gelu(X @ params["fc1"]["kernel"] + params["fc1"]["bias"], approximate=False)
    z = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    prototypes = params["head"]["embedding"]
    wanted = z @ prototypes.T / np.linalg.norm(z, axis=-1)[..., None] / np.linalg.norm(prototypes, axis=-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_has_a_direction_and_no_gradient_that_is_not_finite():
    params = jax.tree.map(np.zeros_like, random_parameters(HEAD))
    grads = jax.grad(lambda p: HEAD(p, X).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
