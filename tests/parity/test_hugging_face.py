"""Towers equal Hugging Face's, values and gradients, on tiny random models in f32.

Tolerance: |ours - theirs| <= 1e-5 (|theirs| + the largest |theirs| of the same leaf).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT

from . import convert, peers

WIDTH, DEPTH, HEADS, MLP = 32, 2, 4, 48
PATCH, IMAGE, VOCAB, LENGTH, BATCH = 8, 32, 50, 12, 3
OURS = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_dim": MLP, "dtype": "float32"}
THEIRS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": MLP,
}
EOS = VOCAB - 1
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def assert_close(ours, theirs, name):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max(), err_msg=name)


def randomised(build):
    """A model whose every parameter is moved, so that biases, norms and probes are not at trivial values."""
    torch = peers.torch()
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def weights_of(model):
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def gradients_of(model):
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def inputs():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    text = rng.integers(3, EOS, (BATCH, LENGTH))
    for row, end in enumerate((LENGTH - 1, 4, 7)):
        text[row, end:] = EOS  # padded with the end token itself: only the first one is the end
    return image, text.astype(np.int32)


def our_logits(model, params, image, text):
    variables = {"params": params}
    z_image, _ = model.encode_image(variables, image)
    z_text, _ = model.encode_text(variables, text)
    return z_text @ z_image.T * model.scale(variables) + model.bias(variables), (z_image, z_text)


def compare(model, theirs, table):
    """Embeddings, logits, and the gradient of a weighted sum of logits with respect to every parameter."""
    torch = peers.torch()
    image, text = inputs()
    params = tree.unflatten({name: jnp.asarray(leaf) for name, leaf in table(weights_of(theirs), DEPTH).items()})
    abstract = jax.eval_shape(model.init, jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)

    out = theirs(pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)), input_ids=torch.tensor(text).long())
    weight = np.random.default_rng(1).uniform(size=(BATCH, BATCH)).astype(np.float32)
    (out.logits_per_text * torch.tensor(weight)).sum().backward()
    expected = table(gradients_of(theirs), DEPTH)

    def objective(params):
        logits, z = our_logits(model, params, image, text)
        return (logits * weight).sum(), (logits, z)

    (_, (logits, z)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(z[0], out.image_embeds.detach(), "image_embeds")
    assert_close(z[1], out.text_embeds.detach(), "text_embeds")
    assert_close(logits, out.logits_per_text.detach(), "logits")
    gradient = tree.flatten(gradient)
    assert gradient.keys() == expected.keys()
    for name, leaf in gradient.items():
        assert_close(leaf, expected[name], f"gradient of {name}")


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_siglip(activation):
    transformers = peers.transformers()
    theirs = {**THEIRS, "hidden_act": ACTIVATIONS[activation]}
    vision = {**theirs, "image_size": IMAGE, "patch_size": PATCH}
    special = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0}
    text = {**theirs, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "projection_size": WIDTH, **special}
    config = transformers.SiglipConfig(vision_config=vision, text_config=text)
    ours = {**OURS, "activation": activation}
    model = TwoTower(
        image=ViT(**ours, patch_size=PATCH, image_size=IMAGE),
        text=TextTransformer(**ours, vocab_size=VOCAB, length=LENGTH, out_dim=WIDTH),
    )
    compare(model, randomised(lambda: transformers.SiglipModel(config)), convert.siglip)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation):
    transformers = peers.transformers()
    theirs = {**THEIRS, "hidden_act": ACTIVATIONS[activation]}
    vision = {**theirs, "image_size": IMAGE, "patch_size": PATCH}
    special = {"bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS}
    text = {**theirs, "vocab_size": VOCAB, "max_position_embeddings": LENGTH, **special}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    ours = {**OURS, "activation": activation, "norm_eps": 1e-5, "out_dim": 24, "head_bias": False}
    model = TwoTower(
        image=ViT(**ours, patch_size=PATCH, image_size=IMAGE, pool="cls", pre_norm=True, patch_bias=False),
        text=TextTransformer(**ours, vocab_size=VOCAB, length=LENGTH, causal=True, pool="eos", eos_id=EOS, pad_id=EOS),
        logit_bias_init=None,
    )
    compare(model, randomised(lambda: transformers.CLIPModel(config)), convert.clip)


def test_vit_with_cls():
    transformers, torch = peers.transformers(), peers.torch()
    config = transformers.ViTConfig(**THEIRS, image_size=IMAGE, patch_size=PATCH)
    theirs = randomised(lambda: transformers.ViTModel(config, add_pooling_layer=False))
    model = ViT(**OURS, patch_size=PATCH, image_size=IMAGE, pool="cls", activation="gelu", norm_eps=1e-12)
    params = tree.unflatten({n: jnp.asarray(leaf) for n, leaf in convert.vit(weights_of(theirs), DEPTH).items()})
    image, _ = inputs()
    out = theirs(pixel_values=torch.tensor(image.transpose(0, 3, 1, 2))).last_hidden_state
    weight = np.random.default_rng(1).normal(size=(BATCH, WIDTH)).astype(np.float32)
    (out[:, 0] * torch.tensor(weight)).sum().backward()

    apply = functools.partial(model.apply, taps=("ln_post",))
    ours, aux = jax.jit(apply)(params, image)
    assert_close(ours, out[:, 0].detach(), "CLS")
    assert_close(aux["taps"]["ln_post"], out.detach(), "all tokens")
    gradient = jax.jit(jax.grad(lambda params: (model.apply(params, image)[0] * weight).sum()))(params)
    expected = convert.vit(gradients_of(theirs), DEPTH)
    for name, leaf in tree.flatten(gradient).items():
        assert_close(leaf, expected[name], f"gradient of {name}")
