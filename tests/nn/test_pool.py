import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.nn import pool
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers

from .random_parameters import random_parameters

EOS, PAD = 9, 0


def test_the_first_eos_counts():
    text = jnp.array([[1, 2, EOS, EOS, EOS], [1, 2, 3, 4, EOS], [EOS, 1, EOS, 0, 0]])
    np.testing.assert_array_equal(pool.eos_index(text, EOS), [2, 4, 0])


def test_a_text_cut_before_its_end_pools_its_last_token():
    np.testing.assert_array_equal(pool.eos_index(jnp.array([[1, 2, 3], [1, EOS, 0]]), EOS), [2, 1])


def test_real_tokens():
    text = jnp.array([[1, 2, EOS, PAD], [PAD, PAD, PAD, PAD]])
    np.testing.assert_array_equal(pool.real_tokens(text, PAD, EOS), [[1, 1, 1, 0], [0, 0, 0, 0]])


def test_real_tokens_where_padding_is_the_end_token():
    text = jnp.array([[1, 2, EOS, EOS], [1, 2, 3, 4], [EOS, EOS, EOS, EOS]])
    np.testing.assert_array_equal(pool.real_tokens(text, EOS, EOS), [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])


def test_take_and_mean():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(pool.take(x, jnp.array([2, 0])), [[4, 5], [6, 7]])
    np.testing.assert_allclose(pool.mean(x), [[2, 3], [8, 9]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(pool.mean(x, mask), [[1, 2], [0, 0]])


def test_mean_of_many_bf16_tokens_is_summed_in_f32():
    x = jnp.ones((1, 1024, 1), jnp.bfloat16)  # a bf16 sum stops growing at 256
    assert pool.mean(x)[0, 0] == 1
    assert pool.mean(x, jnp.ones((1, 1024), bool))[0, 0] == 1
    assert pool.mean(x).dtype == jnp.bfloat16


def map_head():
    init = initializers("jax", width=8, depth=1)
    return Functional(pool.MapHead, 8, 2, 16, activation="gelu_tanh", norm_eps=1e-6, dtype="float32", init=init)


def test_map_head_ignores_the_order_of_tokens():
    head = map_head()
    params = random_parameters(head)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    head = jax.jit(head)
    out = head(params, x)
    assert out.shape == (2, 8)
    np.testing.assert_allclose(out, head(params, x[:, ::-1]), atol=1e-6)


def test_map_head_does_not_see_what_is_masked():
    head = map_head()
    params = random_parameters(head)
    x = jax.random.normal(jax.random.key(1), (1, 5, 8))
    mask = jnp.array([[True, True, True, False, False]])
    head = jax.jit(head)
    np.testing.assert_allclose(head(params, x, mask), head(params, x[:, :3]), atol=1e-6)
