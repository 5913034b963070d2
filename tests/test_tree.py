"""Names of leaves, and scanned layers as one leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax import tree

STACKS = {"image/blocks": 3}


def live(depth=3):
    return {
        "image": {"blocks": {"mlp": {"kernel": jnp.arange(depth * 4.0).reshape(depth, 2, 2)}}, "head": jnp.ones(5)},
        "scale": jnp.zeros(()),
    }


def test_flatten_and_unflatten_are_inverse():
    leaves = tree.flatten(live())
    assert list(leaves) == ["image/blocks/mlp/kernel", "image/head", "scale"]
    assert jax.tree.all(jax.tree.map(np.array_equal, tree.unflatten(leaves), live()))


def test_unstack_names_every_layer():
    leaves = tree.flatten(tree.unstack(live(), STACKS))
    assert [n for n in leaves if "blocks" in n] == [f"image/blocks/0{i}/mlp/kernel" for i in range(3)]
    np.testing.assert_array_equal(leaves["image/blocks/01/mlp/kernel"], [[4, 5], [6, 7]])


def test_stack_undoes_unstack_for_arrays_and_shapes():
    for value in (live(), jax.eval_shape(live)):
        again = tree.stack(tree.unstack(value, STACKS), STACKS)
        assert jax.tree.structure(again) == jax.tree.structure(value)
        assert [x.shape for x in jax.tree.leaves(again)] == [x.shape for x in jax.tree.leaves(value)]


def test_optimizer_states_unstack_too():
    opt = optax.adamw(1e-3).init(live())
    names = tree.flatten(tree.unstack(opt, STACKS))
    assert "0/mu/image/blocks/02/mlp/kernel" in names and "0/count" in names
    again = tree.like(opt, tree.flatten(tree.stack(tree.unstack(opt, STACKS), STACKS)))
    assert jax.tree.structure(again) == jax.tree.structure(opt)


@given(st.integers(1, 1200))
def test_layer_names_sort_as_layers(depth):
    names = [tree.layer_name(depth, i) for i in range(depth)]
    assert names == sorted(names) and len(set(names)) == depth


def test_a_group_whose_name_begins_alike_is_another():
    assert tree.per_layer_names("image/blocks2/kernel", (3, 2), STACKS) is None
    assert tree.per_layer_names("1/mu/image/blocks/kernel", (3, 2), STACKS)[0] == "1/mu/image/blocks/00/kernel"
