import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower, unit_norm
from vlm_jax.models.vit import ViT

SHAPE = {"width": 16, "depth": 2, "num_heads": 2}
TINY = TwoTower(
    image=ViT(**SHAPE, patch_size=4, image_size=8, dtype="float32", scan=True),
    text=TextTransformer(**SHAPE, vocab_size=10, length=6, dtype="float32"),
)
CLIP = dataclasses.replace(
    TINY, logit_scale_init=math.log(1 / 0.07), logit_bias_init=None, logit_scale_max=math.log(100)
)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
TEXT = jnp.array([[1, 2, 3, 4, 5, 6]] * 2)


@pytest.fixture
def variables(parameters):
    return parameters(TINY)


def test_variables():
    variables = jax.eval_shape(TINY.init, jax.random.key(0))
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"image", "text", "logit_scale", "logit_bias"}
    disk = tree.flatten(tree.unstack(variables["params"], TINY.stacks))
    assert {"image/blocks/01/attn/qkv/kernel", "text/blocks/01/attn/qkv/kernel"} <= set(disk)
    assert TINY.stacks == {"image/blocks": 2}


def test_initial_scale_and_bias():
    scalars = ("logit_scale", "logit_bias")
    variables = jax.jit(lambda key: {"params": {s: TINY.init(key)["params"][s] for s in scalars}})(jax.random.key(0))
    for name, value in (("logit_scale", math.log(10)), ("logit_bias", -10)):
        leaf = variables["params"][name]
        assert leaf.shape == () and leaf.dtype == jnp.float32 and leaf == pytest.approx(value)
    assert TINY.scale(variables) == pytest.approx(10) and TINY.bias(variables) == -10


def test_clip_has_no_bias_and_a_clamped_scale(parameters):
    params = parameters(CLIP)["params"]
    assert "logit_bias" not in params and CLIP.bias({"params": params}) == 0
    for before, after in ((-0.5, 0.0), (2.0, 2.0), (9.0, math.log(100))):
        constrained = CLIP.constrain(params | {"logit_scale": jnp.float32(before)})
        assert constrained["logit_scale"] == pytest.approx(after)
        assert constrained["image"] is params["image"]
    free = TINY.constrain(params | {"logit_scale": jnp.float32(9)})
    assert free["logit_scale"] == 9


def test_embeddings_are_f32_and_of_unit_norm(variables):
    for dtype in ("float32", "bfloat16"):
        model = dataclasses.replace(
            TINY,
            image=dataclasses.replace(TINY.image, dtype=dtype),
            text=dataclasses.replace(TINY.text, dtype=dtype),
        )
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        for z, _ in (jax.jit(model.encode_image)(variables, IMAGE), jax.jit(model.encode_text)(variables, TEXT)):
            assert z.dtype == jnp.float32 and z.shape[1] == TINY.dim
            np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1, atol=1e-5)


def test_bytes_are_normalised_and_floats_taken_as_they_are(variables):
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    model = dataclasses.replace(TINY, image_mean=mean, image_std=std)
    seen = ((IMAGE / 255 - np.array(mean)) / np.array(std)).astype(np.float32)
    encode = jax.jit(model.encode_image)
    np.testing.assert_allclose(encode(variables, IMAGE)[0], encode(variables, seen)[0], atol=1e-5)
    assert np.abs(encode(variables, IMAGE)[0] - encode(variables, IMAGE.astype(np.float32))[0]).max() > 1e-2


def test_a_zero_vector_has_a_finite_gradient():
    value, grad = jax.value_and_grad(lambda x: unit_norm(x).sum())(jnp.zeros((1, 4), jnp.bfloat16))
    assert value == 0 and np.isfinite(grad.astype(np.float32)).all()


def test_taps_and_keys_reach_the_towers(variables):
    model = dataclasses.replace(TINY, image=dataclasses.replace(TINY.image, patch_dropout=0.5))
    options = {"train": True, "key": jax.random.key(0), "taps": ("embed",)}
    _, aux = jax.jit(lambda v: model.encode_image(v, IMAGE, **options))(variables)
    assert aux["taps"]["embed"].shape == (3, 2, 16)
    _, aux = jax.jit(lambda v: model.encode_text(v, TEXT, **options))(variables)
    assert aux["taps"]["embed"].shape == (2, 6, 16)


@pytest.mark.parametrize("component", [ViT, TextTransformer, TwoTower])
def test_fields_are_a_schema(component):
    hints = typing.get_type_hints(component)
    for field in dataclasses.fields(component):
        assert field.default is not dataclasses.MISSING and field.name in hints


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": TextTransformer(out_dim=512)}, "image 768, text 512; give both the same out_dim"),
        ({"image_mean": (0.5,)}, "three values each"),
        ({"image_std": (0.5, 0.0, 0.5)}, "must be above zero"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        TwoTower(**fields)
