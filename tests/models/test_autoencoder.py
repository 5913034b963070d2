"""Autoencoders: every bottleneck between encoder and decoder, alone and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.losses import codebook
from vlm_jax.mesh import Layout
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.bottlenecks.base import Moment, Ramp
from vlm_jax.models.bottlenecks.continuous import Deterministic, Gaussian
from vlm_jax.models.bottlenecks.gumbel import Gumbel
from vlm_jax.models.bottlenecks.scalar import FSQ, LFQ
from vlm_jax.models.bottlenecks.vq import VectorQuantiser
from vlm_jax.models.codecs import VitDecoder, VitEncoder
from vlm_jax.tasks.autoencoding import Autoencoding
from vlm_jax.tasks.base import Context

SIZES = dict(width=16, depth=1, num_heads=2, patch_size=4, image_size=16, dtype="float32")
ENCODER = VitEncoder(**SIZES)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
VQ = VectorQuantiser(size=12, dim=4, kmeans=3, revive=0.05)
BOTTLENECKS = {
    "plain": Deterministic(dim=3),
    "gaussian": Gaussian(dim=3, beta=Ramp(0.0, 0.1, percent=50)),
    "vq": VQ,
    "vq, cosine": VectorQuantiser(size=12, dim=4, cosine=True, gradient="rotation"),
    "residual": VectorQuantiser(size=12, dim=4, quantisers=3),
    "fsq": FSQ((5, 3)),
    "lfq": LFQ(bits=4),
    "gumbel": Gumbel(size=12, temperature=Ramp(1.0, 0.1, percent=100), beta=0.01),
}


def task(name: str, reconstruction: str = "l2") -> Autoencoding:
    decoder = VitDecoder(**SIZES, channels=6 if reconstruction == "logit_laplace" else 3)
    return Autoencoding(Autoencoder(ENCODER, BOTTLENECKS[name], decoder, image_size=16), reconstruction)


def mesh(devices: int):
    return Layout(data=devices).make(jax.devices()[:devices])


def step(task: Autoencoding, variables, devices: int = 1, number: int = 0):
    """Loss, aux and gradients of a step."""
    ctx = Context(jax.random.key(number), jnp.int32(number), 10, mesh(devices))
    run = lambda params: task.loss({**variables, "params": params}, {"image": IMAGES}, ctx)
    (loss, aux), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
    return jax.device_get((loss, aux, gradients))


@functools.cache
def first_step(name: str):
    t = task(name)
    variables = jax.jit(t.init)(jax.random.key(0))
    return t, variables, step(t, variables)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_parameter_learns(name):
    _, variables, (loss, aux, gradients) = first_step(name)
    assert np.isfinite(loss) and jax.tree.structure(aux["state"]) == jax.tree.structure(variables["state"])
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        # A bias before norms, and the code that no feature is near, may have none.
        assert np.isfinite(gradient).all() and (np.abs(gradient).max() > 0 or "bias" in str(path)), path
    weights = {"plain": {}, "gaussian": {"kl"}, "residual": {"commitment"}, "fsq": {}, "gumbel": {"kl"}}
    parts = weights.get(name, {"commitment", "entropy"} if name == "lfq" else {"commitment"})
    assert {f"{part}_loss" for part in parts} | {"reconstruction_loss"} <= aux["metrics"].keys()


@pytest.mark.parametrize("name", ["vq", "gumbel", pytest.param("residual", marks=pytest.mark.full)])
def test_devices_do_not_matter(name):
    """k-means, running means and revival see the whole batch; noise belongs to a row."""
    t, variables, (loss, aux, gradients) = first_step(name)
    others = step(t, variables, devices=8)
    np.testing.assert_allclose(others[0], loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves((aux, gradients)), jax.tree.leaves(others[1:])):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if BOTTLENECKS[name].vocab_size])
def test_tokens_stand_for_the_reconstruction(name):
    t, variables, (_, aux, _) = first_step(name)
    predict = t.predict({**variables, "state": aux["state"]})
    tokens = predict["tokens"](IMAGES)
    stages = (3,) if name == "residual" else ()
    assert tokens.shape == (8, 4, 4, *stages) and tokens.dtype == jnp.int32
    assert 0 <= tokens.min() and tokens.max() < BOTTLENECKS[name].vocab_size
    difference = np.asarray(predict["from_tokens"](tokens), int) - np.asarray(predict["reconstruct"](IMAGES), int)
    assert np.abs(difference).max() <= 1  # a rounding


def test_latents_that_are_numbers():
    t, variables, _ = first_step("gaussian")
    predict = t.predict(variables)
    latents = predict["latents"](IMAGES)
    assert latents.shape == (8, 4, 4, 16) and "tokens" not in predict
    np.testing.assert_array_equal(predict["images"](latents), predict["reconstruct"](IMAGES))
    with pytest.raises(UserError, match="Gaussian has no codes: its latents are numbers"):
        t.model.encode_tokens(variables, IMAGES)


def test_logit_laplace_is_the_density_of_what_is_decoded():
    t = task("plain", "logit_laplace")
    variables = jax.jit(t.init)(jax.random.key(0))
    loss, aux, _ = step(t, variables)
    features = t.model.features(variables, IMAGES).reshape(-1, 16)
    vectors = t.model.through(variables, features, Moment(jax.random.key(0), 0, 1, False)).vectors
    mean, log_scale = np.split(np.asarray(t.model.decode(variables, vectors.reshape(8, 4, 4, 16)), np.float64), 2, -1)
    x = 0.8 * IMAGES / 255 + 0.1
    nll = np.abs(np.log(x / (1 - x)) - mean) / np.exp(log_scale) + np.log(2 * np.exp(log_scale) * x * (1 - x))
    np.testing.assert_allclose([loss, aux["metrics"]["reconstruction_loss"]], nll.mean(), rtol=1e-5)


def test_the_codebook_starts_once_and_follows_the_features():
    t, variables, (_, aux, _) = first_step("vq")
    state = aux["state"]
    assert not variables["state"]["started"] and state["started"]
    features = t.model.features(variables, IMAGES).reshape(-1, 16)
    kernel = variables["params"]["bottleneck"]["in"]
    z = features @ kernel["kernel"] + kernel["bias"]
    book = codebook.kmeans(z, jax.random.fold_in(jax.random.key(0), 0), 12, iterations=3)
    from vlm_jax.losses import nearest_code

    expected = codebook.update(book, z, nearest_code(z, book["embedding"]))
    np.testing.assert_allclose(state["embedding"][0], expected["embedding"], atol=1e-5)
    _, later, _ = step(t, {**variables, "state": jax.tree.map(jnp.asarray, state)}, number=1)
    moved = np.abs(later["state"]["embedding"] - state["embedding"]).max()
    assert 0 < moved < 0.1 * np.abs(state["embedding"]).max()  # not started anew


def test_ramps_reach_their_ends():
    at = lambda step, total=200: Moment(jax.random.key(0), step, total, True)
    kl, temperature = Ramp(0.0, 6.6, steps=5000), Ramp(1.0, 1 / 16, steps=150_000)
    assert [float(kl.at(at(s))) for s in (0, 2500, 5000, 9999)] == pytest.approx([0, 3.3, 6.6, 6.6])
    assert [float(temperature.at(at(s))) for s in (0, 150_000)] == pytest.approx([1, 1 / 16])
    half = Ramp(2.0, 4.0, percent=50)
    assert [float(half.at(at(s))) for s in (0, 50, 100, 200)] == pytest.approx([2, 3, 4, 4])


def test_what_does_not_fit():
    t, variables, _ = first_step("vq")
    with pytest.raises(UserError, match=r"image_size=18 x 16 is not divisible by the encoder's stride of 4"):
        t.model.encode_tokens(variables, np.zeros((1, 18, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"image_size=18 x 18 is not divisible by the encoder's stride of 4"):
        Autoencoder(ENCODER, VQ, VitDecoder(**SIZES), image_size=18)
    with pytest.raises(UserError, match="token 12 is out of range: the tokens are 0 to 11"):
        t.model.decode_tokens(variables, jnp.full((1, 4, 4), 12))
    with pytest.raises(UserError, match=r"encoder.stride=4 and decoder.stride=8"):
        Autoencoder(ENCODER, VQ, VitDecoder(**SIZES | dict(patch_size=8)), image_size=16)
    with pytest.raises(UserError, match=r"reconstruction='logit_laplace' needs decoder.channels=6, not 3"):
        Autoencoding(t.model, "logit_laplace")
    with pytest.raises(UserError, match=r"levels=\(2,\)"):
        FSQ((2,))
    with pytest.raises(UserError, match="give one of the two"):
        Ramp(0.0, 1.0)
