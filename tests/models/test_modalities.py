"""Weights of their own for tokens of images (arXiv:2502.06788, section 3), against one token after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree, warm_start
from vlm_jax.errors import UserError
from vlm_jax.interop import language
from vlm_jax.mesh import Layout, replicated
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.eve import Eve
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.nn import shard

MODEL = LanguageModel(
    width=16, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=24, vocab_size=20, length=16, dtype="float32", scan=False,
    remat="none", qkv_bias=True, modalities=2,
)  # fmt: skip
SCANNED = dataclasses.replace(MODEL, scan=True, remat="block")
PLAIN = dataclasses.replace(MODEL, modalities=1)
TEXT = np.random.default_rng(0).integers(1, 20, (2, 12)).astype(np.int32)
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0], [1] * 12], np.int32)
IMAGE = np.zeros((2, 12), bool)
IMAGE[0, 1:4] = IMAGE[0, 7:9] = IMAGE[1, :6] = True
EVE = Eve(MODEL, patch_size=4, patches=16, width=16, embedding="convolutions")


def norm(x, p):
    return x / np.sqrt((x**2).mean() + 1e-5) * p["scale"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def turned(x, position):
    """Of one head's query or key: feature i with feature i + half."""
    half = len(x) // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    a, b = x[:half], x[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def one_sequence(params, tokens, image):
    """The last norm's output of each token of one sequence alone."""
    stream = [params["embed"]["token"][token] for token in tokens]
    for block in params["blocks"].values():
        own = [block["image"] if of_image else block for of_image in image]
        query, key, value = [], [], []
        for t, p in enumerate(own):
            h = norm(stream[t], p["ln1"])
            q, kv = linear(h, p["attn"]["q"]).reshape(4, 4), linear(h, p["attn"]["kv"]).reshape(2, 2, 4)
            query.append([turned(head, t) for head in q])
            key.append([turned(head, t) for head in kv[0]])
            value.append(kv[1])
        for t, p in enumerate(own):
            heads = []
            for h in range(4):
                logits = np.array([query[t][h] @ key[s][h // 2] / 2 for s in range(t + 1)])
                weights = np.exp(logits - logits.max())
                heads.append(sum(w * value[s][h // 2] for s, w in enumerate(weights / weights.sum())))
            stream[t] = stream[t] + linear(np.concatenate(heads), p["attn"]["out"])
            gate, up = np.split(linear(norm(stream[t], p["ln2"]), p["mlp"]["fc1"]), 2)
            stream[t] = stream[t] + linear(gate / (1 + np.exp(-gate)) * up, p["mlp"]["fc2"])
    return np.stack([norm(x, params["ln_post"]) for x in stream])


def both(parameters):
    """The unrolled and the scanned model with the same parameters."""
    params = parameters(MODEL)
    return ((MODEL, params), (SCANNED, tree.stack(params, SCANNED.stacks)))


def test_each_token_has_the_weights_of_its_modality(parameters):
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters(MODEL))
    parts = ((0, 0, 5), (0, 5, 11), (1, 0, 12))
    wanted = [one_sequence(expected, TEXT[row, a:b], IMAGE[row, a:b]) for row, a, b in parts]
    for model, params in both(parameters):
        found, _ = jax.jit(lambda p, m=model: m.apply(p, TEXT, SEGMENTS, image=IMAGE))(params)
        for (row, a, b), sequence in zip(parts, wanted):
            np.testing.assert_allclose(found[row, a:b], sequence, atol=1e-5)


def test_a_cache_gives_what_the_whole_sequence_gives(parameters):
    """Prompts of unequal length with images in them, then tokens of text."""
    count = np.array([9, 7])
    prompt = np.where(np.arange(9) < count[:, None], TEXT[:, :9], 0)
    for model, params in both(parameters):
        whole, _ = jax.jit(lambda p, m=model: m.apply(p, TEXT, image=IMAGE))(params)
        extend = jax.jit(model.extend)
        hidden, cache = extend(params, prompt, model.cache(2, 12), count, image=IMAGE[:, :9])
        for step in range(3):
            np.testing.assert_allclose(hidden, [whole[row, count[row] + step - 1] for row in range(2)], atol=1e-5)
            if step < 2:
                token = np.stack([TEXT[row, count[row] + step] for row in range(2)])
                hidden, cache = extend(params, token[:, None], cache)


def test_copies_are_the_plain_decoder(parameters):
    """What `init_from` makes of a decoder without images: the same function, whatever is an image's."""
    plain = parameters(PLAIN)
    live = jax.tree.map(jnp.zeros_like, tree.stack(parameters(MODEL), SCANNED.stacks))
    model = TextDecoder(SCANNED)
    found = warm_start.fit(model.complete({"decoder": plain}), {"decoder": live}, model.stacks)["decoder"]
    expected, _ = jax.jit(lambda p: PLAIN.apply(p, TEXT, SEGMENTS))(plain)
    for mask in (IMAGE, None):
        hidden, _ = jax.jit(lambda p, m=mask: SCANNED.apply(p, TEXT, SEGMENTS, image=m))(found)
        np.testing.assert_allclose(hidden[SEGMENTS > 0], expected[SEGMENTS > 0], atol=1e-5)


def test_what_a_run_has_already_is_not_replaced(parameters):
    params = parameters(MODEL)
    assert jax.tree.all(jax.tree.map(np.array_equal, MODEL.complete(params), params))
    assert PLAIN.complete(params) is params


def eve_batch(images):
    """Two rows, that begin with an image where there are `images`."""
    rng = np.random.default_rng(1)
    batch = {
        "text": TEXT,
        "text_segment_ids": SEGMENTS,
        "text_image_ids": np.zeros_like(TEXT),
        "patches": rng.integers(0, 256, (2, 16, 48)).astype(np.uint8),
        "image_grids": np.full((2, 1, 2), (2, 4) if images else 0, np.int32),
    }
    batch["text_image_ids"][:, : 1 + 1 * (2 + 1)] = int(images)  # CLS, and a row of two with its end
    return batch


def eve_loss(params, batch):
    weight = np.random.default_rng(2).normal(size=(2, 12, 16)) * (SEGMENTS > 0)[..., None]
    return (EVE.hidden({"params": params}, batch, train=True)[0] * weight).sum()


def test_texts_alone_leave_the_weights_of_images_as_they_are(parameters):
    """One compiled program: a batch has its places for images whether there are any or not."""
    gradient = jax.jit(jax.grad(eve_loss))
    params = parameters(EVE)["params"]

    def moved(batch):
        leaves = tree.flatten(gradient(params, batch)).items()
        return {name for name, leaf in leaves if np.any(np.asarray(leaf))}

    names = set(tree.flatten(params)) - {"decoder/head/embedding"}
    of_images = {name for name in names if "/image/" in name or name.startswith("embedding/")}
    assert moved(eve_batch(images=False)) == names - of_images
    assert moved(eve_batch(images=True)) == names


def test_eve_writes_after_an_image(parameters):
    """A prompt with an image, and a token: the logits of the whole sequence."""
    variables = parameters(EVE)
    batch = eve_batch(images=True) | {"text_segment_ids": np.ones_like(SEGMENTS)}
    hidden, _ = jax.jit(EVE.hidden)(variables, batch)
    whole = hidden @ EVE.head(variables).T
    count = np.array([9, 7])
    prompt = {key: x[:, :9] if key.startswith("text") else x for key, x in batch.items()}
    prompt["text_segment_ids"] = (np.arange(9) < count[:, None]).astype(np.int32)
    logits, cache = jax.jit(EVE.start, static_argnums=2)(variables, prompt, 10)
    np.testing.assert_allclose(logits, whole[[0, 1], count - 1], atol=1e-4)
    logits, _ = jax.jit(EVE.extend)(variables, TEXT[[0, 1], count], cache)
    np.testing.assert_allclose(logits, whole[[0, 1], count], atol=1e-4)


@pytest.mark.full
def test_devices_do_not_change_it(parameters):
    params, batch = parameters(EVE)["params"], eve_batch(images=True)
    gradient = lambda: jax.jit(jax.value_and_grad(eve_loss))
    loss, expected = gradient()(params, batch)
    mesh = Layout(data=1, fsdp=2, tensor=2).make(jax.devices()[:4])
    with shard.under(mesh):
        other, found = gradient()(jax.device_put(params, replicated(mesh)), batch)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for (name, a), b in zip(tree.flatten(found).items(), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()), err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"modalities": 3}, "modalities=3"), ({"qk_norm": "rms"}, "qk_norm='rms' is not there for modalities=2")],
)
def test_bad_values(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(MODEL, **change)


def test_no_class_of_transformers_is_it():
    with pytest.raises(UserError, match="has modalities=2; they have 1"):
        language.describe(MODEL)


def test_an_embedding_that_there_is_not():
    with pytest.raises(UserError, match=r"unknown embedding=.convolution.;.*convolutions"):
        dataclasses.replace(EVE, embedding="convolution")
