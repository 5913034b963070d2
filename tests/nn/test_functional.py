import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.nn.functional import Functional


class Scaled(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.fc = nnx.Linear(4, 4, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(()))
        self.absent = None

    def __call__(self, x, *, shift=0.0):
        return self.fc(self.norm(x)) * self.gain[...] + shift

    def double(self, x):
        return 2 * self.gain[...] * x


@pytest.fixture
def module():
    return Functional(Scaled)


def test_parameters_are_plain_dicts_of_f32_named_by_attribute(module):
    params = jax.jit(module.init)(jax.random.key(0))
    assert type(params) is dict and type(params["fc"]) is dict
    assert set(tree.flatten(params)) == {"norm/scale", "norm/bias", "fc/kernel", "fc/bias", "gain"}
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_same_key_same_numbers(module):
    first, again, other = (jax.jit(module.init)(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["fc"]["kernel"], again["fc"]["kernel"])
    assert (first["fc"]["kernel"] != other["fc"]["kernel"]).any()


def test_calls_any_method_with_keywords(module):
    params = jax.jit(module.init)(jax.random.key(0)) | {"gain": jnp.float32(3)}
    np.testing.assert_allclose(module(params, jnp.ones(2), method="double"), [6, 6])
    x = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(module(params, x, shift=1.0), module(params, x) + 1, rtol=1e-6)


def test_inside_jit_grad_vmap_and_scan(module):
    stacked = jax.vmap(module.init)(jax.random.split(jax.random.key(0), 3))
    x = jnp.arange(8.0).reshape(2, 4)

    @jax.jit
    @jax.grad
    def scanned(params):
        return jax.lax.scan(lambda x, layer: (x + module(layer, x), None), x, params)[0].sum()

    @jax.jit
    @jax.grad
    def unrolled(params):
        y = x
        for i in range(3):
            y = y + module(jax.tree.map(lambda leaf, i=i: leaf[i], params), y)
        return y.sum()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), scanned(stacked), unrolled(stacked))


def test_wrong_names_are_an_error_and_not_assigned_by_position(module):
    params = jax.jit(module.init)(jax.random.key(0))
    params["gian"] = params.pop("gain")
    with pytest.raises(UserError, match=r"missing \['gain'\], unknown \['gian'\]"):
        module(params, jnp.ones((2, 4)))


def test_leaves_the_global_modes_of_nnx_as_they_were(module):
    modes = (nnx.set_graph_mode, nnx.set_graph_updates, nnx.use_eager_sharding)
    before = [mode.current_value() for mode in modes]
    module(jax.jit(module.init)(jax.random.key(0)), jnp.ones((2, 4)))
    assert [mode.current_value() for mode in modes] == before


def test_only_nn_knows_flax():
    package = pathlib.Path(tree.__file__).parent
    imports = re.compile(r"^\s*(import|from) flax", re.MULTILINE)
    users = {path.relative_to(package).parts[0] for path in package.rglob("*.py") if imports.search(path.read_text())}
    assert users == {"nn"}
