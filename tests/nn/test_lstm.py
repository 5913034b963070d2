import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.lstm import AttentionLstm

from .random_parameters import random_parameters

LSTM = Functional(AttentionLstm, 10, 6, 5, 4, 3, dtype="float32", init=initializers("jax", width=5, depth=1))
CONTEXT = np.random.default_rng(1).normal(size=(2, 7, 4)).astype(np.float32)
TEXT = np.array([[3, 4, 5, 6], [7, 8, 9, 1]], np.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive(params, context, text):
    """One row and one token at a time, after the paper's equations 1 to 7."""
    apply = lambda name, x: x @ params[name]["kernel"] + params[name].get("bias", 0)
    out = np.zeros((*text.shape, 5))
    for row, features in enumerate(context):
        h, c = (np.tanh(apply(name, features.mean(0))) for name in ("init_h", "init_c"))
        for time, token in enumerate(params["token"][text[row]]):
            scores = [apply("score", np.tanh(apply("of_context", a) + apply("of_state", h)))[0] for a in features]
            weights = np.exp(scores) / np.exp(scores).sum()
            z = sigmoid(apply("gate", h)) * sum(w * a for w, a in zip(weights, features))
            i, f, o, g = np.split(apply("of_input", np.concatenate([token, z])) + apply("of_hidden", h), 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out[row, time] = token + apply("out_h", h) + apply("out_z", z)
    return out


def test_equals_the_equations():
    params = random_parameters(LSTM)
    state = LSTM(params, CONTEXT, method="start")
    found, _ = LSTM(params, TEXT, state, jnp.array([4, 4]), method="extend")
    np.testing.assert_allclose(found, naive(params, CONTEXT, TEXT), rtol=1e-5, atol=1e-5)


def test_the_state_is_that_after_the_tokens_that_count():
    params = random_parameters(LSTM)
    state = LSTM(params, CONTEXT, method="start")
    whole, after = LSTM(params, TEXT, state, jnp.array([2, 3]), method="extend")
    following = jnp.array([[5], [1]])
    found, _ = LSTM(params, following, after, jnp.array([1, 1]), method="extend")
    np.testing.assert_allclose(found[:, 0], jnp.stack([whole[0, 2], whole[1, 3]]), rtol=1e-5, atol=1e-6)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(after)} == {2}
