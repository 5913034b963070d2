"""Linear cross-entropy: equality with its dense twin, alone and over tokens and vocabulary split; what it keeps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from vlm_jax.losses import cross_entropy, reference

F32 = jnp.float32


def problem(tokens: int, vocab: int, dim: int, seed: int = 0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden, embedding = rng.standard_normal((tokens, dim)), rng.standard_normal((vocab, dim))
    labels = np.where(rng.random(tokens) < 0.25, -1, rng.integers(0, vocab, tokens))
    return jnp.asarray(hidden, dtype), jnp.asarray(embedding, dtype), jnp.asarray(labels, jnp.int32)


def gradients(loss, hidden, embedding, labels, **options):
    f = jax.value_and_grad(lambda h, e: loss(h, e, labels, **options), (0, 1))
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})(hidden, embedding)


@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(1, 90),
    dim=st.integers(1, 20),
    block=st.sampled_from([(1024, 4096), (8, 16), (7, 13), (1, 90)]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    soft_cap=st.sampled_from([None, 5.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_the_dense_twin(pairs, tokens, vocab, dim, block, z_loss, soft_cap, weighted, seed):
    inputs = problem(tokens, vocab, dim, seed)
    options = {"z_loss": z_loss, "soft_cap": soft_cap}
    if weighted:
        options["weights"] = jnp.asarray(np.random.default_rng(seed).random(tokens) * (np.arange(tokens) % 3), F32)
    want = gradients(reference.cross_entropy, *inputs, **options)
    pairs.assert_close(gradients(cross_entropy, *inputs, block=block, **options), want, floor=1e-6)


MESHES = [
    ({"data": 4}, "data", None),
    ({"tensor": 4}, None, "tensor"),
    ({"data": 4, "tensor": 2}, "data", "tensor"),
    ({"data": 2, "fsdp": 2, "tensor": 2}, ("data", "fsdp"), "tensor"),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "data", ("tensor", "fsdp")),
]


@pytest.mark.parametrize("sizes, axes, vocab_axes", MESHES, ids=str)
def test_tokens_and_vocabulary_may_be_split(pairs, sizes, axes, vocab_axes):
    hidden, embedding, labels = problem(40, 24, 6)
    weights = jnp.linspace(0.0, 2.0, 40)
    options = {"z_loss": 1e-2, "soft_cap": 8.0}
    want = gradients(reference.cross_entropy, hidden, embedding, labels, weights=weights, **options)
    mesh, tokens, vocab = pairs.make_mesh(**sizes), P(axes), P(vocab_axes)

    def loss(hidden, embedding, labels, weights):
        split = {"axis_name": axes, "vocab_axis_name": vocab_axes, "block": (3, 5)}
        return cross_entropy(hidden, embedding, labels, weights=weights, **split, **options)

    specs = (tokens, vocab, tokens, tokens)
    outside = lambda h, e: jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())(h, e, labels, weights)
    pairs.assert_close(jax.jit(jax.value_and_grad(outside, (0, 1)))(hidden, embedding), want)
    inside = jax.shard_map(
        jax.value_and_grad(loss, (0, 1)), mesh=mesh, in_specs=specs, out_specs=(P(), (tokens, vocab))
    )
    pairs.assert_close(jax.jit(inside)(hidden, embedding, labels, weights), want)


def test_an_axis_of_one_device_may_be_left_out_of_the_specs(pairs):
    hidden, embedding, labels = problem(16, 12, 6)
    want = gradients(reference.cross_entropy, hidden, embedding, labels)
    for names in ({"axis_name": ("data", "tensor")}, {"axis_name": "data", "vocab_axis_name": "tensor"}):
        mapped = jax.shard_map(
            functools.partial(cross_entropy, **names),
            mesh=pairs.make_mesh(data=4, tensor=1),
            in_specs=(P("data"), P(), P("data")),
            out_specs=P(),
        )
        pairs.assert_close(gradients(mapped, hidden, embedding, labels), want)


def test_losses_are_those_of_each_token_over_the_whole_vocabulary(pairs):
    hidden, embedding, labels = problem(16, 24, 6)
    weights = jnp.arange(16.0)
    logits = jax.nn.log_softmax(hidden @ embedding.T, axis=1)
    want = jnp.where(labels < 0, 0, -logits[jnp.arange(16), labels])
    pairs.assert_close(cross_entropy(hidden, embedding, labels, weights=weights, return_losses=True)[1], want)
    mapped = jax.shard_map(
        lambda *args: cross_entropy(*args, vocab_axis_name="tensor", return_losses=True)[1],
        mesh=pairs.make_mesh(tensor=4),
        in_specs=(P(), P("tensor"), P()),
        out_specs=P(),
    )
    pairs.assert_close(mapped(hidden, embedding, labels), want)


def test_ignored_tokens_may_hold_anything(pairs):
    hidden, embedding, labels = problem(16, 12, 6)
    want = gradients(cross_entropy, hidden[labels >= 0], embedding, labels[labels >= 0])
    hidden = jnp.where(labels[:, None] >= 0, hidden, jnp.nan)
    value, (d_hidden, d_embedding) = gradients(cross_entropy, hidden, embedding, labels)
    assert not np.any(d_hidden[labels < 0])
    pairs.assert_close((value, (d_hidden[labels >= 0], d_embedding)), want)


def test_bf16_is_summed_in_f32_and_gives_gradients_of_its_own_type(pairs):
    hidden, embedding, labels = problem(64, 50, 16, dtype=jnp.bfloat16)
    want_value, want = gradients(reference.cross_entropy, hidden, embedding, labels)
    value, got = gradients(cross_entropy, hidden, embedding, labels, block=(16, 16))
    assert value.dtype == jnp.float32 and got[0].dtype == got[1].dtype == jnp.bfloat16
    pairs.assert_close(value, want_value)
    pairs.assert_close(got, want, 2e-2)
    _, mixed = gradients(cross_entropy, hidden, embedding.astype(jnp.float32), labels, block=(16, 16))
    assert mixed[1].dtype == jnp.float32
    pairs.assert_close(mixed, want, 2e-2)


def test_keeps_a_number_a_token_for_the_backward_pass():
    """2,048 tokens and 8,192 entries: the logits would be 64 MiB."""
    hidden, embedding, labels = problem(2048, 8192, 64)
    _, pullback = jax.vjp(lambda h, e: cross_entropy(h, e, labels), hidden, embedding)
    kept = sum(x.nbytes for x in jax.tree.leaves(pullback))
    assert kept - sum(x.nbytes for x in (hidden, embedding)) < 2**17


@pytest.mark.parametrize(
    "hidden, embedding, labels, options, says",
    [
        (((4, 3), F32), ((5, 2), F32), ((4,), jnp.int32), {}, r"got \(4, 3\) and \(5, 2\)"),
        (((2, 4, 3), F32), ((5, 3), F32), ((4,), jnp.int32), {}, r"\[tokens, dim\].*got \(2, 4, 3\)"),
        (((4, 3), F32), ((0, 3), F32), ((4,), jnp.int32), {}, r"embedding must not be empty; got \(0, 3\)"),
        (((4, 3), F32), ((5, 3), F32), ((5,), jnp.int32), {}, r"labels must be signed integers of shape \(4,\)"),
        (((4, 3), F32), ((5, 3), F32), ((4,), F32), {}, "got float32"),
        (((4, 3), jnp.int32), ((5, 3), F32), ((4,), jnp.int32), {}, "hidden must be of a floating-point type"),
        (((4, 3), F32), ((5, 3), F32), ((4,), jnp.int32), {"weights": jnp.ones(5)}, r"weights must be.*\(4,\).*\(5,\)"),
        (((4, 3), F32), ((5, 3), F32), ((4,), jnp.int32), {"block": (0, 8)}, "block must be two positive sizes"),
        (((4, 3), F32), ((5, 3), F32), ((4,), jnp.int32), {"soft_cap": 0.0}, "soft_cap must be positive"),
        (
            ((4, 3), F32),
            ((5, 3), F32),
            ((4,), jnp.int32),
            {"vocab_axis_name": "tensor"},
            "vocab_axis_name must be None",
        ),
    ],
)
def test_bad_input_is_refused_at_trace_time(hidden, embedding, labels, options, says):
    shapes = (jax.ShapeDtypeStruct(*x) for x in (hidden, embedding, labels))
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda *a: cross_entropy(*a, **options), *shapes)
