"""Imported models equal transformers', outputs and gradients, on small random models in f32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop

from ..parity import peers
from . import layers
from . import peer_models as small
from .peer_models import BATCH, EOS, IMAGE, PATCH, WIDTH, assert_close, assert_gradients, inputs

WEIGHT = np.random.default_rng(1).uniform(size=(BATCH, BATCH)).astype(np.float32)


def imported(theirs, folder):
    found = interop.source(small.save(theirs, folder))
    return configs.build(found.model), jax.tree.map(jnp.asarray, found.params())


def compare_towers(theirs, folder):
    """Embeddings, logits, and the gradient of a weighted sum of logits with respect to every parameter."""
    torch = peers.torch()
    image, text = inputs()
    model, params = imported(theirs, folder / "weights")
    out = theirs(pixel_values=small.channels_first(image), input_ids=torch.tensor(text).long())
    (out.logits_per_text * torch.tensor(WEIGHT)).sum().backward()
    expected = small.our_gradients(theirs, folder / "gradients")

    def objective(params):
        variables = {"params": params}
        z_image, z_text = model.encode_image(variables, image)[0], model.encode_text(variables, text)[0]
        logits = z_text @ z_image.T * model.scale(variables) + model.bias(variables)
        return (logits * WEIGHT).sum(), (logits, z_image, z_text)

    (_, (logits, z_image, z_text)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    try:
        assert_close(z_image, out.image_embeds.detach(), "image_embeds")
        assert_close(z_text, out.text_embeds.detach(), "text_embeds")
    except AssertionError as error:
        again = type(theirs).from_pretrained(folder / "weights")  # theirs holds gradients by now
        pixels = {"ours": image, "theirs": small.channels_first(image)}
        raise AssertionError(f"{error}\n{layers.report(model, params, again, pixels, text)}") from error
    assert_close(logits, out.logits_per_text.detach(), "logits")
    assert_gradients(gradient, expected, terms=np.abs(logits * WEIGHT).sum())


def test_a_failure_names_the_layer(tmp_path, monkeypatch):
    theirs = small.randomise(small.siglip())
    found = interop.source(small.save(theirs, tmp_path / "weights"))
    wrong = found.params()
    bias = wrong["image"]["blocks"]["01"]["mlp"]["fc2"]["bias"]
    bias += np.arange(WIDTH)
    model = configs.build(found.model)
    monkeypatch.setattr(__import__(__name__, fromlist=["x"]), "imported", lambda *_: (model, wrong))
    with pytest.raises(AssertionError) as raised:
        compare_towers(theirs, tmp_path)
    errors = dict(line.split(": ") for line in str(raised.value).splitlines() if line.startswith(("image/", "text/")))
    far = [name for name, error in errors.items() if float(error) > 1e-5]
    assert far == ["image/blocks/01"] and len(errors) == 6


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_siglip(activation, tmp_path):
    compare_towers(small.randomise(small.siglip(activation)), tmp_path)


def test_siglip_whose_patches_do_not_divide_its_images(tmp_path):
    compare_towers(small.randomise(small.siglip(patch_size=9)), tmp_path)


@pytest.mark.parametrize(("activation", "eos"), [("quick_gelu", EOS), ("gelu", EOS), ("quick_gelu", 2)])
def test_clip(activation, eos, tmp_path):
    compare_towers(small.randomise(small.clip(activation, eos)), tmp_path)


def compare_image(theirs, folder, image, pooled, **options):
    """The image's vector, and the gradient of a weighted sum of it with respect to every parameter."""
    torch = peers.torch()
    model, params = imported(theirs, folder / "weights")
    out = pooled(theirs(pixel_values=small.channels_first(image), **options))
    weight = np.random.default_rng(2).normal(size=out.shape).astype(np.float32)
    (out * torch.tensor(weight)).sum().backward()
    expected = small.our_gradients(theirs, folder / "gradients")
    run = lambda params: model.apply(params, image)[0]
    assert_close(jax.jit(run)(params), out.detach(), "output")
    assert_gradients(jax.jit(jax.grad(lambda params: (run(params) * weight).sum()))(params), expected)


def cls(out):
    return out.last_hidden_state[:, 0]


@pytest.mark.parametrize("bias", [True, False])
def test_vit(bias, tmp_path):
    compare_image(small.randomise(small.vit(qkv_bias=bias)), tmp_path, inputs()[0], cls)


def test_vit_that_classifies(tmp_path):
    compare_image(small.randomise(small.vit(labels=7)), tmp_path, inputs()[0], lambda out: out.logits)


@pytest.mark.parametrize(("swiglu", "registers"), [(False, 0), (True, 0), (False, 4)])
@pytest.mark.parametrize("size", [IMAGE, 2 * IMAGE - PATCH, IMAGE - PATCH], ids=["trained", "larger", "smaller"])
def test_dinov2(swiglu, registers, size, tmp_path):
    image = np.random.default_rng(0).normal(size=(BATCH, size, size, 3)).astype(np.float32)
    compare_image(small.randomise(small.dinov2(swiglu, registers)), tmp_path, image, lambda out: out.pooler_output)


def test_all_tokens_of_a_vit(tmp_path):
    theirs = small.randomise(small.vit())
    model, params = imported(theirs, tmp_path)
    image, _ = inputs()
    _, aux = jax.jit(functools.partial(model.apply, taps=("ln_post",)))(params, image)
    out = theirs(pixel_values=small.channels_first(image)).last_hidden_state
    assert_close(aux["taps"]["ln_post"], out.detach(), "tokens")


def test_naflex(tmp_path):
    """Images of their own shapes, each padded: positions are resized for each, padding is not attended to."""
    torch = peers.torch()
    theirs = small.randomise(small.siglip2())
    model, params = imported(theirs, tmp_path / "weights")
    rng, time = np.random.default_rng(0), 20
    grids = np.array([(4, 4), (2, 7), (5, 3)])
    patches = rng.normal(size=(BATCH, time, PATCH * PATCH * 3)).astype(np.float32)
    mask = np.arange(time) < grids.prod(axis=1)[:, None]
    positions = np.stack([np.divmod(np.arange(time), cols) for _, cols in grids]).swapaxes(1, 2) * mask[..., None]
    _, text = inputs()
    out = theirs(
        pixel_values=torch.tensor(patches),
        pixel_attention_mask=torch.tensor(mask),
        spatial_shapes=torch.tensor(grids),
        input_ids=torch.tensor(text).long(),
    )
    (out.logits_per_text * torch.tensor(WEIGHT)).sum().backward()
    expected = small.our_gradients(theirs, tmp_path / "gradients")

    def objective(params):
        variables = {"params": params}
        segments = mask.astype(np.int32)
        z_image = model.encode_packed_images(variables, patches, positions, grids[:, None], segments)[:, 0]
        z_text = model.encode_text(variables, text)[0]
        logits = z_text @ z_image.T * model.scale(variables) + model.bias(variables)
        return (logits * WEIGHT).sum(), (logits, z_image)

    (_, (logits, z_image)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(z_image, out.image_embeds.detach(), "image_embeds")
    assert_close(logits, out.logits_per_text.detach(), "logits")
    assert_gradients(gradient, expected, terms=np.abs(logits * WEIGHT).sum())
    assert model.image.dim == WIDTH
