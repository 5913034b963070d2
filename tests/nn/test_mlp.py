import math

import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.nn.mlp import ACTIVATIONS

X = np.linspace(-4, 4, 41)
FORMULAS = {
    "gelu": [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in X],
    "gelu_tanh": [x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2 for x in X],
    "quick_gelu": [x / (1 + math.exp(-1.702 * x)) for x in X],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), FORMULAS[name], atol=1e-6)
