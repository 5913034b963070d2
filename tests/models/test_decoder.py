import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout, replicated
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.nn import shard

MODEL = LanguageModel(
    width=32, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=48, vocab_size=40, length=16, dtype="float32", scan=False
)
VARIANTS = {
    "llama": {},
    "scanned": {"scan": True},
    "fuyu": {"norm": "layer", "qk_norm": "layer", "activation": "squared_relu", "bias": True, "rotary": 0.5},
    "chameleon": {"qk_norm": "layer_per_head", "placement": "swin", "scan": True, "remat": "block"},
    "tied": {"tied": True, "qkv_bias": True, "head_dim": 12},
}
TEXT = np.random.default_rng(0).integers(1, 40, (2, 12)).astype(np.int32)


def variant(name):
    model = dataclasses.replace(MODEL, **VARIANTS[name])
    params = jax.jit(model.init)(jax.random.key(0))
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    return model, jax.tree.map(noise, params)


@pytest.mark.parametrize(
    "name", [pytest.param("llama", marks=pytest.mark.full), "scanned", "fuyu", "chameleon", "tied"]
)
def test_a_cache_gives_what_the_whole_sequence_gives(name):
    """Prompts of unequal length in a padded batch, then a token at a time."""
    model, params = variant(name)
    whole = jax.jit(lambda text: model.logits(params, model.apply(params, text)[0]))(TEXT)
    extend = jax.jit(lambda x, cache, count=None: model.extend(params, x, cache, count))
    count = np.array([5, 3])
    prompt = np.where(np.arange(6) < count[:, None], TEXT[:, :6], 0)
    hidden, cache = extend(prompt, model.cache(2, 12), count)
    for step in range(6):
        expected = np.stack([whole[row, count[row] + step - 1] for row in range(2)])
        np.testing.assert_allclose(model.logits(params, hidden), expected, atol=1e-5)
        hidden, cache = extend(np.stack([TEXT[row, count[row] + step] for row in range(2)])[:, None], cache)
    assert cache["length"].tolist() == [11, 9]
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(cache))


@pytest.mark.parametrize("name", ["llama", pytest.param("fuyu", marks=pytest.mark.full)])
def test_packed_sequences_are_those_alone(name):
    model, params = variant(name)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], np.int32)
    weight = np.random.default_rng(1).normal(size=(2, 12, 32)).astype(np.float32) * (segments > 0)[..., None]

    def packed(params):
        out = model.apply(params, TEXT, segments)[0]
        return (out * weight).sum(), out

    def alone(params):
        parts = [(0, 0, 5), (0, 5, 9), (1, 0, 12)]
        each = [model.apply(params, TEXT[row : row + 1, a:b])[0] for row, a, b in parts]
        return sum((out[0] * weight[row, a:b]).sum() for out, (row, a, b) in zip(each, parts)), each

    (_, out), gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
    (_, each), expected = jax.jit(jax.value_and_grad(alone, has_aux=True))(params)
    for found, wanted in zip((out[0, :5], out[0, 5:9], out[1]), each):
        np.testing.assert_allclose(found, wanted[0], atol=1e-5)
    for (path, found), wanted in zip(tree.flatten(gradient).items(), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()), err_msg=path)


def changed_by(apply, position):
    """Which positions change with the token at `position`."""
    other = TEXT.copy()
    other[:, position] = other[:, position] % 39 + 1
    return (np.abs(apply(other) - apply(TEXT)).max(axis=(0, 2)) > 1e-5).tolist()


def test_a_token_sees_those_before_it_and_a_prefix_is_seen_by_all():
    model, params = variant("llama")
    assert changed_by(lambda text: model.apply(params, text)[0], 4) == [i >= 4 for i in range(12)]
    prefix = np.broadcast_to(np.arange(12) < 6, (2, 12))
    assert changed_by(lambda text: model.apply(params, text, prefix=prefix)[0], 4) == [True] * 12
    assert changed_by(lambda text: model.apply(params, text, prefix=prefix)[0], 7) == [i >= 7 for i in range(12)]


def test_scanned_layers_are_unrolled_ones():
    model, params = variant("llama")
    scanned = dataclasses.replace(model, scan=True)
    stacked = tree.stack(params, scanned.stacks)
    names = ("embed", "blocks/01", "ln_post")
    one = model.apply(params, TEXT, taps=names)
    other = scanned.apply(stacked, TEXT, taps=names)
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    for name in names:
        np.testing.assert_allclose(one[1]["taps"][name], other[1]["taps"][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("remat", ["block", *(pytest.param(r, marks=pytest.mark.full) for r in ("attention", "mlp"))])
def test_what_is_computed_again_is_the_same(remat):
    model, params = variant("llama")
    loss = lambda model: jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, TEXT)[0]).mean()))(params)
    expected, found = loss(model), loss(dataclasses.replace(model, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_names():
    _, params = variant("llama")
    block = {"ln1/scale", "attn/q/kernel", "attn/kv/kernel", "attn/out/kernel", "ln2/scale"}
    block |= {"mlp/fc1/kernel", "mlp/fc2/kernel"}
    names = {f"blocks/{i:02d}/{name}" for i in range(3) for name in block}
    assert set(tree.flatten(params)) == names | {"embed/token", "ln_post/scale", "head/embedding"}
    assert params["blocks"]["00"]["attn"]["kv"]["kernel"].shape == (32, 2 * 2 * 8)


@pytest.mark.parametrize(
    ("size", "millions"), [("135M", 134.5), ("1B", 1100.0), ("7B", 6738.4)], ids=["SmolLM2", "TinyLlama", "LLaMA"]
)
def test_sizes_are_those_published(size, millions):
    options = {"tied": True, "vocab_size": 49_152} if size == "135M" else {}
    params = jax.eval_shape(LanguageModel(size=size, **options).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"rotary": 0.4}, "rotary=0.4"),
        ({"norm": "batch"}, "unknown norm='batch'"),
        ({"qk_norm": "batch"}, "unknown qk_norm='batch'"),
        ({"placement": "post"}, "unknown placement='post'"),
        ({"activation": "gelu"}, "set bias=True"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"size": "13B"}, "unknown size='13B'"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(MODEL, **change)


def test_longer_than_the_model():
    model, params = variant("llama")
    with pytest.raises(UserError, match="17 tokens are longer than the model's length=16"):
        model.apply(params, np.zeros((1, 17), np.int32))
    with pytest.raises(UserError, match="17 tokens"):
        model.cache(1, 17)


def test_norms_of_heads_are_split_with_their_heads():
    model, params = variant("chameleon")
    mesh = Layout(data=2, tensor=2).make(jax.devices()[:4])
    weight = np.random.default_rng(1).normal(size=(2, 12, 32)).astype(np.float32)

    def loss(mesh, params):
        with shard.under(mesh):
            return (model.apply(params, TEXT)[0] * weight).sum()

    of = lambda mesh: jax.jit(jax.value_and_grad(functools.partial(loss, mesh)))
    (one, gradient), (other, split) = of(None)(params), of(mesh)(jax.device_put(params, replicated(mesh)))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for name in ("q_norm", "k_norm"):
        for a, b in zip(*(jax.tree.leaves(g["blocks"]["attn"][name]) for g in (gradient, split))):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max(), err_msg=name)
