"""Both contrastive losses over many devices: equality with their dense twins, through both orders of grad and map."""

from __future__ import annotations

import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import infonce_loss, reference, sigmoid_loss, tiles

LOSSES = {
    "sigmoid": (sigmoid_loss, reference.sigmoid_loss, (10.0, -10.0)),
    "infonce": (infonce_loss, reference.infonce_loss, (14.3,)),
}
MESHES = [
    ({"data": 1}, "data"),
    ({"data": 8}, "data"),
    ({"data": 2, "fsdp": 4}, ("data", "fsdp")),
    ({"data": 4, "fsdp": 2}, ("fsdp", "data")),
    ({"data": 8, "fsdp": 1}, ("data", "fsdp")),
    ({"data": 2, "fsdp": 2, "tensor": 2}, ("data", "fsdp")),
]


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def scalars(values):
    return tuple(jnp.float32(v) for v in values)


@pytest.mark.parametrize("sizes, axes", MESHES, ids=str)
@pytest.mark.parametrize("extra", ["plain", "ids and mask"])
def test_every_mesh_equals_the_dense_twin(pairs, loss, sizes, axes, extra):
    """By a ring of all devices; the default for so small a batch is to gather."""
    f, twin, start = loss
    image, text, ids, mask = pairs.random_pairs(24, 20)
    options = {} if extra == "plain" else {"ids": ids, "mask": mask}
    options["group_size"] = 1
    args = (image, text, *scalars(start))
    want = pairs.dense_gradients(twin, args, **{name: x for name, x in options.items() if name != "group_size"})
    mesh = pairs.make_mesh(**sizes)
    pairs.assert_close(pairs.gradient_outside(f, mesh, axes, args, **options), want)
    pairs.assert_close(pairs.gradient_inside(f, mesh, axes, args, **options), want)


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(list(LOSSES)),
    local=st.integers(1, 11),
    dim=st.integers(1, 33),
    ring=st.sampled_from([(n, g) for n in (1, 2, 3, 4, 6, 8) for g in (1, 2, 3, 4, 8) if n % g == 0]),
    most=st.sampled_from([(1024, 4096), (4, 4096), (1024, 5), (3, 7)]),
    scale=st.floats(0.01, 100),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    with_ids=st.booleans(),
    with_mask=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_dense_twin(
    pairs, name, local, dim, ring, most, scale, smoothing, with_ids, with_mask, seed
):
    """Whatever the group and the largest tile, so that tiles are padded too."""
    f, twin, start = LOSSES[name]
    devices, group_size = ring
    image, text, ids, mask = pairs.random_pairs(local * devices, dim, seed)
    options = {"ids": ids if with_ids else None, "mask": mask if with_mask else None}
    if name == "infonce":
        options["label_smoothing"] = smoothing
    args = (image, text, *scalars((scale, *start[1:])))
    want = pairs.dense_gradients(twin, args, **options)
    floor = 3e-7 * max(1, scale)
    with unittest.mock.patch.object(tiles, "MOST", most):
        pairs.assert_close(pairs.dense_gradients(f, args, **options), want, floor=floor)
        mesh = pairs.make_mesh(data=devices)
        got = pairs.gradient_outside(f, mesh, "data", args, group_size=group_size, **options)
        pairs.assert_close(got, want, floor=floor)


def test_masked_rows_may_hold_anything(pairs, loss):
    f, twin, start = loss
    image, text, ids, mask = pairs.random_pairs(24, 12)
    want = pairs.dense_gradients(twin, (image[mask], text[mask], *scalars(start)), ids=ids[mask])
    garbage = jnp.where(jnp.arange(24) % 2 == 0, jnp.nan, jnp.inf)[:, None]
    image, text = (jnp.where(mask[:, None], x, garbage) for x in (image, text))
    args = (image, text, *scalars(start))
    mesh = pairs.make_mesh(data=8)
    for take in (pairs.gradient_outside, pairs.gradient_inside):
        value, (d_image, d_text, *d_scalars) = take(f, mesh, "data", args, ids=ids, mask=mask)
        assert not np.any(d_image[~mask]) and not np.any(d_text[~mask])
        pairs.assert_close((value, (d_image[mask], d_text[mask], *d_scalars)), want)


def test_a_batch_in_which_no_row_counts_has_no_loss_and_no_gradient(pairs, loss):
    f, _, start = loss
    image, text, _, mask = pairs.random_pairs(8, 4)
    got = pairs.dense_gradients(f, (image, text, *scalars(start)), mask=jnp.zeros_like(mask), ids=None)
    assert all(not np.any(x) for x in jax.tree.leaves(got))


def test_bf16_features_are_reduced_in_f32(pairs, loss):
    f, twin, start = loss
    image, text, *_ = pairs.random_pairs(64, 32, dtype=jnp.bfloat16)
    args = (image, text, *scalars(start))
    value, gradients = pairs.gradient_outside(f, pairs.make_mesh(data=4), "data", args)
    want, want_gradients = pairs.dense_gradients(twin, args)
    assert value.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16 and gradients[2].dtype == jnp.float32
    pairs.assert_close(value, want)
    pairs.assert_close(gradients, want_gradients, 2e-2)


def test_scalars_may_come_from_inside_the_map(pairs, loss):
    """Parameters that were made varying, as after an all-gather of their shards, get the same gradient in sum."""
    f, twin, start = loss
    image, text, *_ = pairs.random_pairs(16, 8)
    want, want_gradients = pairs.dense_gradients(twin, (image, text, *scalars(start)))

    def varying(image, text, *scalars, axis_name):
        scalars = [jax.lax.pcast(s, axis_name, to="varying") for s in scalars]
        return f(image, text, *scalars, axis_name=axis_name)

    args = (image, text, *scalars(start))
    got = pairs.gradient_outside(varying, pairs.make_mesh(data=4), "data", args)
    pairs.assert_close(got, (want, want_gradients))


@pytest.mark.full
def test_an_axis_of_one_device_may_be_left_out_of_the_specs(pairs, loss):
    f, twin, start = loss
    image, text, *_ = pairs.random_pairs(16, 8)
    body = lambda image, text: f(image, text, *start, axis_name=("data", "fsdp"))
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=4, fsdp=1), in_specs=P("data"), out_specs=P())
    pairs.assert_close(mapped(image, text), twin(image, text, *start))


def call(f, start, image, text, *, sizes=None, check_vma=True, spec=None, make_mesh=None, **options):
    """Traces the loss, under shard_map where `sizes` is given, and runs nothing."""
    body = lambda image, text: f(image, text, *start, **options)
    if sizes is None:
        return jax.eval_shape(body, image, text)
    spec = P(tuple(sizes)) if spec is None else spec
    mapped = jax.shard_map(body, mesh=make_mesh(**sizes), in_specs=spec, out_specs=P(), check_vma=check_vma)
    return jax.eval_shape(mapped, image, text)


X = jax.ShapeDtypeStruct((8, 4), jnp.float32)


@pytest.mark.parametrize(
    "image, text, options, says",
    [
        (X, jax.ShapeDtypeStruct((8, 5), jnp.float32), {}, r"\(8, 4\) and \(8, 5\)"),
        (X, jax.ShapeDtypeStruct((6, 4), jnp.float32), {}, r"\(8, 4\) and \(6, 4\)"),
        (jax.ShapeDtypeStruct((4,), jnp.float32),) * 2 + ({}, r"\[batch, dim\], not empty; got \(4,\)"),
        (jax.ShapeDtypeStruct((2, 8, 4), jnp.float32),) * 2 + ({}, r"\[batch, dim\], not empty; got \(2, 8, 4\)"),
        (jax.ShapeDtypeStruct((0, 4), jnp.float32),) * 2 + ({}, r"\[batch, dim\], not empty; got \(0, 4\)"),
        (jax.ShapeDtypeStruct((8, 4), jnp.int8), X, {}, "image must hold floating-point features; got int8"),
        (X, X, {"ids": np.zeros(7, np.int32)}, r"ids must be integers of shape \(8,\); got int32 of shape \(7,\)"),
        (X, X, {"ids": np.zeros(8, np.float32)}, "ids must be integers.*got float32"),
        (X, X, {"mask": np.ones((8, 1), bool)}, r"mask must be bool of shape \(8,\); got bool of shape \(8, 1\)"),
        (X, X, {"mask": np.ones(8, np.int32)}, "mask must be bool.*got int32"),
        (X, X, {"axis_name": "data"}, r"axis_name must be None outside of jax.shard_map.*'data'"),
        (X, X, {"group_size": 2}, r"got 2 for a batch that is not split \(axis_name=None\)"),
        (X, X, {"axis_name": "dat", "sizes": {"data": 4}}, r"one or more of \('data',\), each once; got 'dat'"),
        (X, X, {"axis_name": ("data", "data"), "sizes": {"data": 4}}, "each once"),
        (X, X, {"axis_name": "data", "sizes": {"data": 4}, "group_size": 3}, "got 3 for axis 'data' of 4 devices"),
        (X, X, {"axis_name": "data", "sizes": {"data": 4}, "group_size": 0}, "got 0 for axis 'data' of 4 devices"),
        (X, X, {"axis_name": "data", "sizes": {"data": 4}, "check_vma": False}, "check_vma=True"),
        (X, X, {"axis_name": "data", "sizes": {"data": 4}, "spec": P()}, r"the same block all along \['data'\]"),
    ],
)
def test_bad_input_is_refused_at_trace_time(pairs, loss, image, text, options, says):
    f, _, start = loss
    with pytest.raises(ValueError, match=says):
        call(f, start, image, text, make_mesh=pairs.make_mesh, **options)


def test_scalars_must_be_scalars(loss):
    f, _, start = loss
    with pytest.raises(ValueError, match=r"scale must be a scalar; got float32 of shape \(1,\)"):
        call(f, (jnp.ones(1), *start[1:]), X, X)


@pytest.mark.parametrize("group_size", [1, 2, 4, 8, None])
def test_group_size_changes_nothing_but_the_way(pairs, loss, group_size):
    f, twin, start = loss
    image, text, ids, mask = pairs.random_pairs(40, 12)
    args = (image, text, *scalars(start))
    want = pairs.dense_gradients(twin, args, ids=ids, mask=mask)
    mesh = pairs.make_mesh(data=2, fsdp=4)
    got = pairs.gradient_outside(f, mesh, ("data", "fsdp"), args, ids=ids, mask=mask, group_size=group_size)
    pairs.assert_close(got, want)


def test_value_alone_needs_no_gradients(pairs, loss):
    """Evaluation runs another, cheaper pass than training: it must give the same loss."""
    f, twin, start = loss
    image, text, ids, mask = pairs.random_pairs(40, 12)
    body = lambda image, text, ids, mask: f(image, text, *start, ids=ids, mask=mask, axis_name="data", group_size=2)
    mapped = jax.shard_map(body, mesh=pairs.make_mesh(data=8), in_specs=P("data"), out_specs=P())
    pairs.assert_close(mapped(image, text, ids, mask), twin(image, text, *start, ids=ids, mask=mask))


def test_nothing_of_the_size_of_the_logits_or_the_batch_is_ever_made(pairs, loss):
    """Forward and backward, the largest array of the program is a tile or the group's features."""
    f, _, start = loss
    local, devices, dim = 32, 8, 8
    image, text, *_ = pairs.random_pairs(local * devices, dim)
    mapped = jax.shard_map(
        lambda *a: f(*a, axis_name="data", group_size=2),
        mesh=pairs.make_mesh(data=devices),
        in_specs=(P("data"), P("data"), *(P(),) * len(start)),
        out_specs=P(),
    )
    with unittest.mock.patch.object(tiles, "MOST", (16, 32)):
        program = jax.make_jaxpr(jax.grad(mapped, (0, 1)))(image, text, *scalars(start))
    inside = [e for e in program.eqns if e.primitive.name == "shard_map"]
    assert len(inside) >= 1
    assert max(largest(e.params["jaxpr"]) for e in inside) == max(2 * local * dim, 16 * 32)


def largest(jaxpr) -> int:
    """Elements of the largest array that a program makes, loops included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                sizes.append(largest(getattr(inner, "jaxpr", inner)))
    return max(sizes)
