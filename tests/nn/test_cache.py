import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition, tree
from vlm_jax.mesh import Layout
from vlm_jax.nn import cache, shard

from .random_parameters import random_parameters
from .test_decoder import CONTEXT, PLAIN, X


def test_rows_grow_each_at_its_own_end():
    held = np.zeros((2, 5, 1), np.float32)
    new = np.array([[[1.0], [2.0]], [[3.0], [4.0]]], np.float32)
    found = cache.append(held, new, jnp.array([0, 3]))
    assert found[..., 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]]


def test_logits_are_those_after_the_last_token_that_counts():
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    head = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    found = cache.next_logits(hidden, head, jnp.array([1, 3]))
    np.testing.assert_allclose(found, np.stack([hidden[0, 0] @ head.T, hidden[1, 2] @ head.T]), rtol=1e-5)


def in_parts(model, params, x, context, parts):
    """The same tokens, so many at a time."""
    held, length = model.start(params, x.shape[0], 8, context), jnp.zeros(x.shape[0], jnp.int32)
    out = []
    for part in jnp.split(x, np.cumsum(parts)[:-1], axis=1):
        stream, held = model.extend(params, part, held, length)
        length += part.shape[1]
        out.append(sum(stream))
    return jnp.concatenate(out, axis=1), held


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("parts", [[1] * 5, [3, 2]])
def test_decoding_by_parts_equals_decoding_at_once(scan, parts):
    model = dataclasses.replace(PLAIN, scan=scan)
    params = random_parameters(model)
    wanted, _ = jax.jit(model.apply)(params, X, None, CONTEXT)
    found, held = jax.jit(functools.partial(in_parts, model, parts=parts))(params, X, CONTEXT)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(held)} == {len(X)}


def test_rows_of_different_lengths_and_of_another_order():
    """What stands behind a row's tokens, and which row it is, changes nothing."""
    params = random_parameters(PLAIN)
    wanted, _ = jax.jit(PLAIN.apply)(params, X, None, CONTEXT)
    ends, order = jnp.array([2, 4]), jnp.array([1, 0])

    @jax.jit
    def decode(params):
        held = PLAIN.start(params, 2, 8, CONTEXT)
        _, held = PLAIN.extend(params, X[:, :4], held, jnp.zeros(2, jnp.int32))
        held = jax.tree.map(lambda leaf: leaf[order], held)
        following = jnp.take_along_axis(X, ends[:, None, None], axis=1)[order]
        return sum(PLAIN.extend(params, following, held, ends[order])[0])[order, 0]

    np.testing.assert_allclose(decode(params), wanted[jnp.arange(2), ends], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=2, tensor=2, min_size=1)])
def test_on_a_mesh_equals_one_device(layout):
    params = random_parameters(PLAIN)
    x, context = np.tile(X, (2, 1, 1)), np.tile(CONTEXT, (2, 1, 1))
    wanted, _ = jax.jit(PLAIN.apply)(params, x, None, context)
    mesh = layout.make(jax.devices())

    def decode(params, x, context):
        with shard.under(mesh):
            return in_parts(PLAIN, params, x, context, [3, 2])

    params = jax.device_put(params, partition.shardings({"blocks": params}, layout, mesh, {})["blocks"])
    found, held = jax.jit(decode)(params, *jax.device_put((x, context), meshes.batch_sharding(mesh)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert tuple(tree.flatten(held)["00/tokens"].sharding.spec) == (("data", "fsdp"), None, "tensor")
