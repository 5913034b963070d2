"""Annotated shapes hold: arguments and results are checked against them with sizes shared within a call."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError, jaxtyped

from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower, normalize, unit_norm
from vlm_jax.models.vit import ViT, drop_patches
from vlm_jax.nn import pool
from vlm_jax.nn.activations import quick_gelu
from vlm_jax.nn.attention import attend
from vlm_jax.nn.embed import patchify
from vlm_jax.nn.positions import resample, sincos2d

SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32"}
MODEL = TwoTower(image=ViT(**SHAPE, patch_size=4, image_size=8), text=TextTransformer(**SHAPE, vocab_size=10, length=6))
TOKENS = jnp.ones((2, 5, 12))
TEXT = jnp.ones((2, 5), jnp.int32)
IMAGE = np.zeros((2, 8, 12, 3), np.uint8)
CALLS = [
    (attend, (jnp.ones((2, 5, 36)), jnp.ones((2, 1, 5), bool)), {"num_heads": 3}),
    (quick_gelu, (TOKENS,), {}),
    (patchify, (jnp.ones((2, 8, 12, 3)), 4), {}),
    (sincos2d, (3, 4, 16), {}),
    (resample, (jnp.ones((10, 6)), (2, 5)), {"prefix": 1}),
    (pool.eos_index, (TEXT, 3), {}),
    (pool.real_tokens, (TEXT, 3), {"eos_id": 3}),
    (pool.take, (TOKENS, jnp.array([1, 2])), {}),
    (pool.mean, (TOKENS, TEXT > 0), {}),
    (drop_patches, (TOKENS, 0.5, jax.random.key(0)), {}),
    (normalize, (IMAGE, (0.5,) * 3, (0.5,) * 3), {}),
    (unit_norm, (TOKENS[0],), {}),
]


def holds(value, hint):
    if typing.get_origin(hint) is tuple:
        return all(holds(v, h) for v, h in zip(value, typing.get_args(hint)))
    if typing.get_origin(hint) in (None, typing.Union) or "jaxtyping" in str(hint):
        return isinstance(value, hint)
    return isinstance(value, typing.get_origin(hint) or object)


def check(function, args, kwargs=None, run=None):
    """Runs the function (or its jitted self, `run`) and holds what goes in and out against its annotations."""
    hints = typing.get_type_hints(function)
    bound = inspect.signature(function).bind(*args, **kwargs or {}).arguments
    with jaxtyped("context"):
        for name, value in bound.items():
            assert not hasattr(value, "shape") or holds(jnp.asarray(value), hints[name]), name
        assert holds((run or function)(*args, **kwargs or {}), hints["return"]), "result"


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS, ids=[call[0].__name__ for call in CALLS])
def test_function(function, args, kwargs):
    check(function, args, kwargs)


def test_model(parameters):
    variables = parameters(MODEL)
    params = variables["params"]
    for method, args in (
        (MODEL.encode_image, (variables, IMAGE)),
        (MODEL.encode_text, (variables, TEXT)),
        (MODEL.image.apply, (params["image"], jnp.zeros(IMAGE.shape))),
        (MODEL.text.apply, (params["text"], TEXT)),
        (MODEL.scale, (variables,)),
        (MODEL.bias, (variables,)),
    ):
        check(method, args, run=jax.jit(method))


def test_the_check_can_fail():
    with pytest.raises((AssertionError, TypeCheckError)):
        check(pool.take, (TOKENS, jnp.array([1, 2, 0])))
