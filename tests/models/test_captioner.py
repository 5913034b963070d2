"""Encoder-decoder captioners: what sees what, parallel prediction, caches, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition, tree
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.models.captioner import Captioner, TextDecoder
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard

SHAPE = {"width": 16, "depth": 2, "num_heads": 2, "dtype": "float32"}
CAPPA = Captioner(
    image=ViT(**SHAPE, patch_size=4, image_size=8, pool="gap"),
    decoder=TextDecoder(**SHAPE, vocab_size=10, length=6, mask_token=True),
)
TROCR = Captioner(
    image=ViT(**SHAPE, patch_size=4, image_size=8, pool="cls"),
    decoder=TextDecoder(
        **SHAPE | {"width": 8}, vocab_size=10, length=6, context_width=16, norm="post", embed_norm=True, tied=True
    ),
)
MODELS = {"cappa": CAPPA, "trocr": TROCR}
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
TEXT = np.array([[3, 4, 5, 6, 7, 8], [3, 4, 5, 0, 0, 0]] * 4, np.int32)


def changed(model, **decoder):
    return dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, **decoder))


def logits_of(model, variables, image, text, **options):
    tokens = model.encode_image(variables, image)[1]["tokens"]
    return model.decode(variables, tokens, text, **options) @ model.head(variables).T


def test_parameters():
    of = lambda model: tree.flatten(jax.eval_shape(model.init, jax.random.key(0))["params"])
    cappa, trocr = of(CAPPA), of(TROCR)
    assert {"decoder/embed/mask", "decoder/ln_post/scale", "decoder/head/embedding"} <= set(cappa)
    assert "decoder/embed/ln/scale" in trocr
    assert not {"decoder/embed/mask", "decoder/ln_post/scale", "decoder/head/embedding"} & set(trocr)
    assert trocr["decoder/blocks/01/cross/kv/kernel"].shape == (16, 16)
    assert TROCR.head({"params": {"decoder": {"embed": {"token": jnp.zeros((10, 8))}}}}).shape == (10, 8)
    scanned = changed(CAPPA, scan=True)
    assert scanned.stacks == {"decoder/blocks": 2}


@pytest.mark.parametrize("name", MODELS)
def test_a_token_sees_those_before_it_and_all_of_the_image(name, parameters):
    model = MODELS[name]
    variables = parameters(model)
    of = jax.jit(functools.partial(logits_of, model, variables))
    before = of(IMAGE, TEXT)
    assert before.shape == (8, 6, 10)
    text = TEXT.copy()
    text[0, 3] = 9
    assert (np.abs(of(IMAGE, text) - before).max(2)[0] > 1e-4).tolist() == [False] * 3 + [True] * 3
    assert (np.abs(of(IMAGE[::-1], TEXT) - before).max((0, 2)) > 1e-4).all()


def test_hidden_tokens_are_predicted_in_parallel(parameters):
    """Every second row: from its first two tokens alone, which see what comes after them."""
    variables = parameters(CAPPA)
    hidden = np.arange(6) >= np.array([2, 6] * 4)[:, None]
    of = jax.jit(lambda text, hidden: logits_of(CAPPA, variables, IMAGE, text, hidden=hidden))
    found = of(TEXT, hidden)
    np.testing.assert_array_equal(found, of(np.where(hidden, 9, TEXT), hidden))
    np.testing.assert_allclose(found[1::2], logits_of(CAPPA, variables, IMAGE, TEXT)[1::2], rtol=1e-4, atol=1e-5)
    text = TEXT.copy()
    text[:, 1] = 9
    assert (np.abs(of(text, hidden) - found)[::2, 0].max(1) > 1e-5).all()
    assert (np.abs(of(TEXT[:, :5], hidden[:, :5])[::2, 0] - found[::2, 0]).max(1) > 1e-5).all()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_those_of_whole_texts(name, scan, parameters):
    model, text = changed(MODELS[name], scan=scan), jnp.array(TEXT[:2])
    variables = parameters(model)
    prompt = text[:, :3].at[1, 1:].set(0)

    @jax.jit
    def cached(variables):
        tokens = model.encode_image(variables, IMAGE[:2])[1]["tokens"]
        logits, cache = model.start_captions(variables, tokens, prompt, 6)
        found = [logits]
        for _ in range(2):
            logits, cache = model.extend(variables, text[jnp.arange(2), cache["length"]], cache)
            found.append(logits)
        return jnp.stack(found, axis=1), cache

    wanted = jax.jit(functools.partial(logits_of, model))(variables, IMAGE[:2], text)
    found, cache = cached(variables)
    np.testing.assert_allclose(found[0], wanted[0, 2:5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1, :3], rtol=1e-5, atol=1e-5)
    assert cache["length"].tolist() == [5, 3]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {2}


def loss(model, mesh, params, image, text):
    with shard.under(mesh):
        hidden = (text > 3) & (jnp.arange(8) % 4 > 0)[:, None] if model.decoder.mask_token else None
        logits = logits_of(model, {"params": params}, image, text, hidden=hidden)
        return (jnp.arange(8.0)[:, None, None] * jax.nn.log_softmax(logits)[..., :3]).mean()


@pytest.mark.parametrize("name", ["cappa", pytest.param("trocr", marks=pytest.mark.full)])
def test_on_a_mesh_equals_one_device(name, parameters):
    model, params = MODELS[name], parameters(MODELS[name])["params"]
    layout = Layout(data=2, fsdp=2, tensor=2, min_size=1)
    wanted, wanted_grads = jax.jit(jax.value_and_grad(functools.partial(loss, model, None)))(params, IMAGE, TEXT)
    mesh = layout.make(jax.devices())
    places = partition.shardings(params, layout, mesh, {})
    assert tuple(tree.flatten(places)["decoder/blocks/00/cross/q/kernel"].spec) == ("fsdp", "tensor")
    step = jax.jit(jax.value_and_grad(functools.partial(loss, model, mesh)), out_shardings=(None, places))
    batch = jax.device_put((IMAGE, TEXT), meshes.batch_sharding(mesh))
    value, grads = jax.block_until_ready(step(jax.device_put(params, places), *batch))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted_grads))
    for key, grad in tree.flatten(jax.device_get(wanted_grads)).items():
        np.testing.assert_allclose(tree.flatten(grads)[key], grad, rtol=1e-4, atol=2e-6 * scale, err_msg=key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(CAPPA, image=ViT(**SHAPE)), "give its image tower pool='gap' or 'cls'"),
        (lambda: changed(TROCR, context_width=None), "context_width=8, the image tower's tokens are 16 wide"),
        (lambda: changed(CAPPA, norm="last"), "unknown norm='last'"),
        (lambda: changed(CAPPA, layer_scale=0.1), "has no layer_scale"),
        (lambda: changed(CAPPA, length=1), "length=1: wanted are at least 1 and 2"),
        (lambda: CAPPA.decoder.start({}, np.zeros((1, 4, 16)), 7), "texts of 7 tokens are longer than .* length=6"),
        (lambda: TROCR.decoder.apply({}, IMAGE, TEXT, hidden=TEXT > 0), "needs a MASK token"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
