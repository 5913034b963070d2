import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import mesh as meshes
from vlm_jax import partition
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.models.lstm_captioner import LstmCaptioner, LstmDecoder, ResNet
from vlm_jax.nn import shard
from vlm_jax.tasks.image_to_text import ImageToText

from .test_captioner import IMAGE, TEXT, logits_of

TINY = LstmCaptioner(
    image=ResNet(image_size=8, channels=(8, 16), blocks=(1, 1), large_stem=False, groups=4, dtype="float32"),
    decoder=LstmDecoder(8, 12, 6, vocab_size=10, length=6, context_width=16, dtype="float32"),
)


def test_a_token_sees_those_before_it_and_the_image(parameters):
    variables = parameters(TINY)
    of = jax.jit(functools.partial(logits_of, TINY, variables))
    before = of(IMAGE, TEXT)
    text = TEXT.copy()
    text[0, 3] = 9
    assert (np.abs(of(IMAGE, text) - before).max(2)[0] > 1e-5).tolist() == [False] * 3 + [True] * 3
    assert (np.abs(of(IMAGE[::-1], TEXT) - before).max((0, 2)) > 1e-5).all()
    embedding, aux = TINY.encode_image(variables, IMAGE)
    assert embedding.shape == (8, TINY.dim) and aux["tokens"].shape == (8, 16, 16)


def test_cached_logits_are_those_of_whole_texts(parameters):
    variables, text = parameters(TINY), jnp.array(TEXT[:2])
    prompt = text[:, :3].at[1, 1:].set(0)

    @jax.jit
    def cached(variables):
        tokens = TINY.encode_image(variables, IMAGE[:2])[1]["tokens"]
        logits, cache = TINY.start_captions(variables, tokens, prompt, 6)
        following = text[jnp.arange(2), cache["length"]]
        return jnp.stack([logits, TINY.extend(variables, following, cache)[0]], axis=1), cache

    wanted = jax.jit(functools.partial(logits_of, TINY))(variables, IMAGE[:2], text)
    found, cache = cached(variables)
    np.testing.assert_allclose(found[0], wanted[0, 2:4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1, :2], rtol=1e-5, atol=1e-5)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {2}


def test_it_writes(parameters):
    predict = ImageToText(TINY, bos_id=3).predict(parameters(TINY))
    assert predict["generate"](IMAGE).shape == (8, 5)
    assert predict["log_likelihood"](IMAGE, TEXT).shape == (8,)


@pytest.mark.full
def test_on_a_mesh_equals_one_device(parameters):
    params = parameters(TINY)["params"]
    layout = Layout(data=2, fsdp=2, tensor=2, min_size=1)
    mesh = layout.make(jax.devices())

    def run(mesh, params, image, text):
        with shard.under(mesh):
            return jax.nn.log_softmax(logits_of(TINY, {"params": params}, image, text))[..., :3].mean()

    wanted = jax.jit(jax.value_and_grad(functools.partial(run, None)))(params, IMAGE, TEXT)
    placed = jax.device_put(params, partition.shardings(params, layout, mesh, {}))
    batch = jax.device_put((IMAGE, TEXT), meshes.batch_sharding(mesh))
    found = jax.device_get(jax.jit(jax.value_and_grad(functools.partial(run, mesh)))(placed, *batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("image", {"groups": 3}, "groups=3 does not divide channels=8"),
        ("image", {"blocks": (1,)}, r"channels=\(8, 16\), blocks=\(1,\): wanted are one number each a stage"),
        ("image", {"channels": (8, 20)}, "context_width=16, the last stage has 20 channels"),
        ("decoder", {"length": 1}, "length=1: wanted is at least 2"),
        ("decoder", {"width": 0}, "width=0 must be at least 1"),
        ("decoder", {"dtype": "float16"}, "unknown dtype='float16'"),
    ],
)
def test_mistakes_are_named(part, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **{part: dataclasses.replace(getattr(TINY, part), **changes)})
