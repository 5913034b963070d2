"""Perceptual and adversarial losses of autoencoders against formulas that are differentiated one by one."""

from __future__ import annotations

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import losses
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.bottlenecks.continuous import Deterministic
from vlm_jax.models.codecs import VitDecoder, VitEncoder
from vlm_jax.models.discriminator import PatchDiscriminator
from vlm_jax.models.vit import ViT
from vlm_jax.optim import Optimizer
from vlm_jax.tasks.autoencoding import Autoencoding
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.judges import Adversary, Perceptual

SIZES = dict(width=8, depth=1, num_heads=2, patch_size=4, image_size=16, dtype="float32")
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
START = 3
SEES = ViT(width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=4, image_size=8, pool="cls", dtype="float32")
PERCEPTUAL = Perceptual(SEES, layers=(0, -1), weight=0.5, image_mean=(0.4, 0.5, 0.6))
ADVERSARY = Adversary(PatchDiscriminator(width=4, layers=2, groups=2, dtype="float32"), start=START)


def task(reconstruction: str = "l1", **judges) -> Autoencoding:
    decoder = VitDecoder(**SIZES, channels=6 if reconstruction == "logit_laplace" else 3)
    model = Autoencoder(VitEncoder(**SIZES), Deterministic(dim=3), decoder, image_size=16)
    return Autoencoding(model, reconstruction, **({"perceptual": PERCEPTUAL, "adversary": ADVERSARY} | judges))


@functools.cache
def variables(task: Autoencoding):
    """Random ones: a discriminator at its initial values says nearly nothing."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(draw, jax.eval_shape(task.init, jax.random.key(0)))


@functools.cache
def step(task: Autoencoding, number: int, devices: int = 1):
    """Loss, metrics and gradients."""
    mesh = Layout(data=devices).make(jax.devices()[:devices])
    ctx = Context(jax.random.key(0), jnp.int32(number), 10, mesh)
    run = lambda params: task.loss({"params": params, "state": {}}, {"image": IMAGES}, ctx)
    (loss, aux), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(variables(task)["params"])
    return jax.device_get((loss, aux["metrics"], gradients))


def naive(task: Autoencoding):
    """Each loss by itself, the weight from gradients by the last kernel, and gradients of the sum."""
    params = variables(task)["params"]
    real = IMAGES / np.float32(255)

    def decoded(params):
        out = task.model.decode({"params": params}, task.latents({"params": params, "state": {}}, IMAGES))
        if task.reconstruction == "logit_laplace":
            return out, losses.unmap_pixels(jax.nn.sigmoid(out[..., :3]))
        return out, out

    def reconstruction(params):
        out, image = decoded(params)
        if task.reconstruction == "logit_laplace":
            distance = losses.logit_laplace_loss(real, out[..., :3], out[..., 3:])
        else:
            distance = jnp.abs(out - real).mean()
        for layer in (0, 1):
            features = []
            for x in (real, image):
                x = jax.image.resize((x - jnp.array(PERCEPTUAL.image_mean)) / 0.5, (8, 8, 8, 3), "bilinear")
                features.append(SEES.apply(params["perceptual"], x, taps=(f"blocks/0{layer}",))[1]["taps"])
            a, b = (f[f"blocks/0{layer}"][:, 1:] for f in features)  # the first is CLS
            a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
            distance += 0.5 * ((a - b) ** 2).sum(-1).mean()
        return distance

    def generator(params):
        return -ADVERSARY.discriminator.apply(params["discriminator"], 2 * decoded(params)[1] - 1).mean()

    def discriminator(params):
        judge = lambda x: ADVERSARY.discriminator.apply(params["discriminator"], 2 * x - 1)
        return (jax.nn.relu(1 - judge(real)).mean() + jax.nn.relu(1 + judge(decoded(params)[1])).mean()) / 2

    @jax.jit
    def run(params):
        (r, by_r), (g, by_g), (d, by_d) = (
            jax.value_and_grad(f)(params) for f in (reconstruction, generator, discriminator)
        )
        length = lambda gradients: jnp.linalg.norm(gradients["decoder"]["head"]["kernel"])
        weight = 0.8 * length(by_r) / (length(by_g) + 1e-4)
        sums = jax.tree.map(lambda a, b: a + weight * b, by_r, by_g)
        return r + weight * g + d, weight, {**sums, "discriminator": by_d["discriminator"]}

    return jax.device_get(run(params))


@pytest.mark.parametrize("reconstruction", ["l1", "logit_laplace"])
def test_one_pass_gives_the_gradients_of_both_sides(reconstruction):
    t = task(reconstruction)
    loss, metrics, gradients = step(t, START)
    expected, weight, expected_gradients = naive(t)
    np.testing.assert_allclose([loss, metrics["adversarial_weight"]], [expected, weight], rtol=1e-4)
    assert not any(np.abs(x).max() for x in jax.tree.leaves(gradients["perceptual"]))
    trained = [{name: x for name, x in g.items() if name != "perceptual"} for g in (gradients, expected_gradients)]
    for ours, theirs in zip(*map(jax.tree.leaves, trained), strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_devices_do_not_matter():
    ours, others = step(task(), START), step(task(), START, devices=8)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(a).max()))


def test_before_its_start_the_adversary_waits():
    _, metrics, gradients = step(task(), START - 1)
    assert metrics["generator_loss"] == metrics["discriminator_loss"] == metrics["adversarial_weight"] == 0
    assert not any(np.abs(x).max() for x in jax.tree.leaves(gradients["discriminator"]))
    alone = task(adversary=None)
    params = {k: v for k, v in variables(task())["params"].items() if k != "discriminator"}
    run = lambda params: alone._distances(params, IMAGES / np.float32(255), alone.model.decode(
        {"params": params}, alone.latents({"params": params, "state": {}}, IMAGES)))[0]  # fmt: skip
    for ours, theirs in zip(*(jax.tree.leaves(g["decoder"]) for g in (gradients, jax.jit(jax.grad(run))(params)))):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))


def test_the_encoder_that_compares_is_frozen():
    run = lambda **rules: task().check_run(types.SimpleNamespace(optimizer=Optimizer(**rules)))
    run(freeze=("perceptual/.*",))
    with pytest.raises(UserError, match=r"would be trained: config.optimizer.freeze=\('perceptual/.\*',\)"):
        run()
    with pytest.raises(UserError, match=r"layers=\(0, 2\): the encoder has blocks 0 to 1, and none 2"):
        dataclasses.replace(PERCEPTUAL, layers=(0, 2))
    with pytest.raises(UserError, match=r"start=-1, weight=0.8"):
        Adversary(start=-1)
    with pytest.raises(UserError, match=r"width=24: its multiples must be divisible by groups=32"):
        PatchDiscriminator(width=24)


def test_patches_of_the_discriminator_are_those_of_pix2pix():
    torch = pytest.importorskip("torch")
    t = ADVERSARY.discriminator
    params = variables(task())["params"]["discriminator"]
    conv = lambda name, x, stride: torch.nn.functional.conv2d(
        x,
        torch.tensor(params[name]["kernel"]).permute(3, 2, 0, 1),
        torch.tensor(params[name]["bias"]) if "bias" in params[name] else None,
        stride,
        1,
    )
    image = 2 * torch.tensor(IMAGES).permute(0, 3, 1, 2) / 255 - 1
    x = torch.nn.functional.leaky_relu(conv("conv_in", image, 2), 0.2)
    for i, stride in ((1, 2), (2, 1)):
        scale, bias = (torch.tensor(params[f"norm_{i}"][name]) for name in ("scale", "bias"))
        x = torch.nn.functional.group_norm(conv(f"conv_{i}", x, stride), 2, scale, bias, 1e-6)
        x = torch.nn.functional.leaky_relu(x, 0.2)
    expected = conv("conv_out", x, 1)[:, 0].numpy()
    np.testing.assert_allclose(t.apply(params, np.asarray(image.permute(0, 2, 3, 1))), expected, atol=1e-5)


@pytest.mark.parametrize(("layers", "smallest"), [(1, 6), (2, 12), (3, 24)])
def test_images_have_a_patch_to_be_judged(layers, smallest):
    judge = PatchDiscriminator(width=4, layers=layers, groups=2)
    params = jax.eval_shape(judge.init, jax.random.key(0))
    shape = lambda size: jax.eval_shape(judge.apply, params, jax.ShapeDtypeStruct((1, size, size, 3), "float32")).shape
    assert shape(smallest) == (1, 1, 1) and 0 in shape(smallest - 1)
    judge.check_size(smallest)
    with pytest.raises(UserError, match=f"images of {smallest - 1} pixels .* layers={layers}, which needs {smallest}"):
        judge.check_size(smallest - 1)


def test_a_task_whose_images_are_too_small():
    with pytest.raises(UserError, match="images of 16 pixels are too small for a discriminator of layers=3"):
        task(adversary=Adversary(PatchDiscriminator(layers=3)))
