import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.nn.decoder import Decoder

from .random_parameters import random_parameters

PLAIN = Decoder(
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=32,
    activation="gelu",
    norm_eps=1e-5,
    qkv_bias=True,
    causal=True,
    scan=False,
    remat="none",
    dtype="float32",
    init_style="clip",
    context_width=12,
)
X = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
CONTEXT = np.random.default_rng(2).normal(size=(2, 7, 12)).astype(np.float32)


def value_and_grad(model, params):
    loss = lambda params: jnp.square(model.apply(params, X, None, CONTEXT)[0]).mean()
    return jax.jit(jax.value_and_grad(loss))(params)


def test_names():
    params = jax.eval_shape(PLAIN.init, jax.random.key(0))
    names = {name.rsplit("/", 1)[0] for name in tree.flatten(params["00"])}
    causal = {f"causal/{part}" for part in ("ln1", "attn/qkv", "attn/out", "ln2", "mlp/fc1", "mlp/fc2")}
    cross = {"ln1", "ln_context", "attn/q", "attn/kv", "attn/out", "ln2", "mlp/fc1", "mlp/fc2"}
    assert names == causal | {f"cross/{part}" for part in cross}
    assert params["00"]["cross"]["attn"]["kv"]["kernel"].shape == (12, 32)


def test_a_token_sees_those_before_it_and_all_of_the_context():
    params = random_parameters(PLAIN)
    of = jax.jit(lambda x, context: PLAIN.apply(params, x, None, context)[0])
    out = of(X, CONTEXT)
    later = X.copy()
    later[:, 3] += np.arange(16) / 4  # a constant would be lost in the norm
    changed = np.abs(of(later, CONTEXT) - out).max((0, 2)) > 1e-4
    assert changed.tolist() == [False] * 3 + [True] * 2
    other = CONTEXT.copy()
    other[:, -1] += np.arange(12) / 4
    assert (np.abs(of(X, other) - out).max((0, 2)) > 1e-4).all()


@pytest.mark.parametrize("change", [{"scan": True}, {"remat": "block"}, {"remat": "attention"}, {"remat": "mlp"}])
def test_scanned_and_rematerialised_layers_are_the_same(change):
    params = random_parameters(PLAIN)
    model = dataclasses.replace(PLAIN, **change)
    value, grads = value_and_grad(model, tree.stack({"b": params}, {"b": 2})["b"] if model.scan else params)
    grads = tree.unstack({"b": grads}, {"b": 2} if model.scan else {})["b"]
    wanted, wanted_grads = value_and_grad(PLAIN, params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, wanted_grads)
