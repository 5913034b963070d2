"""Captioning alone: against dense arithmetic, on meshes, in microbatches; parallel prediction; writing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import accumulate, partition, tree
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout, put
from vlm_jax.models.captioner import Captioner, TextDecoder
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.image_to_text import ImageToText

from ..nn.random_parameters import random_parameters
from .test_captioning import DATA, LENGTH, TEXT, VOCAB

SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32"}
MODEL = Captioner(
    image=ViT(**SHAPE, patch_size=4, image_size=8, pool="gap"),
    decoder=TextDecoder(**SHAPE, vocab_size=VOCAB, length=LENGTH, mask_token=True, eos_id=1),
)
TASK = ImageToText(MODEL)
BATCH = {"image": DATA["image"], "text": TEXT}


def context(mesh=None, **options):
    options = {"key": jax.random.key(0), "step": jnp.int32(0), "total_steps": 1} | options
    return Context(mesh=mesh or Layout().make(jax.devices()[:1]), **options)


def dense(params, parallel=None):
    """All logits in memory, one token's probability at a time picked out."""
    v = {"params": params}
    tokens = MODEL.encode_image(v, DATA["image"])[1]["tokens"]
    options = {} if parallel is None else {"hidden": jnp.tile(parallel[:, None], LENGTH - 1)}
    hidden = MODEL.decode(v, tokens, TEXT[:, :-1], **options)
    picked = jnp.take_along_axis(jax.nn.log_softmax(hidden @ MODEL.head(v).T), TEXT[:, 1:, None], axis=2)[..., 0]
    likelihood = jnp.where(TEXT[:, 1:] == 0, 0, picked).sum(1)
    return -likelihood.sum() / (TEXT[:, 1:] != 0).sum(), likelihood


@functools.cache
def expected():
    return jax.device_get(jax.jit(jax.value_and_grad(dense, has_aux=True))(random_parameters(MODEL)["params"]))


MESHES = [
    pytest.param(Layout(data=2, fsdp=2, tensor=2, min_size=1), 8, 1, id="mesh"),
    pytest.param(Layout(), 2, 4, id="microbatches"),
]


@pytest.mark.parametrize(("layout", "devices", "microbatches"), MESHES)
def test_loss_and_gradients_are_those_of_dense_arithmetic(layout, devices, microbatches):
    (wanted, _), wanted_grads = expected()
    mesh = layout.make(jax.devices()[:devices])
    ctx, make = context(mesh), lambda p, s: {"params": p}
    with shard.under(mesh):
        params = random_parameters(MODEL)["params"]
        params = jax.device_put(params, partition.shardings(params, layout, mesh, {}))
        of = accumulate.whole if microbatches == 1 else functools.partial(accumulate.averaged, parts=microbatches)
        of = lambda params, batch, of=of: of(TASK, make, params, {}, batch, ctx)
        found = jax.device_get(jax.jit(of)(params, put(BATCH, np.arange(len(TEXT)), len(TEXT), mesh)))
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    flat = tree.flatten(wanted_grads)
    for name, grad in tree.flatten(found.grads).items():
        np.testing.assert_allclose(grad, flat[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_share_of_the_examples_is_predicted_in_parallel():
    """Each example by a draw of its own, which is another at the next step; and none in evaluation."""
    v = random_parameters(MODEL)
    task = dataclasses.replace(TASK, parallel=0.5)
    run = jax.jit(lambda key: task.loss(v, BATCH, context(key=key))[0])
    found = []
    for seed in range(3):
        keys = context(key=jax.random.key(seed)).row_keys(len(TEXT))
        parallel = jnp.stack([jax.random.uniform(jax.random.fold_in(key, 1)) < 0.5 for key in keys])
        found.append(parallel.tolist())
        np.testing.assert_allclose(run(jax.random.key(seed)), dense(v["params"], parallel)[0], rtol=1e-5)
    assert 0 < sum(map(sum, found)) < 24 and found[0] != found[1]
    evaluated = jax.jit(lambda: task.loss(v, BATCH, context(train=False))[0])()
    np.testing.assert_allclose(evaluated, expected()[0][0], rtol=1e-5)


@pytest.mark.full
def test_predictions():
    v = random_parameters(MODEL)
    predict = dataclasses.replace(TASK, bos_id=3, sampling=Sampling(max_tokens=4, stop=(VOCAB,))).predict(v)
    assert set(predict) == {"image_embedding", "log_likelihood", "generate"}
    np.testing.assert_allclose(predict["log_likelihood"](DATA["image"], TEXT), expected()[0][1], rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(predict["image_embedding"](DATA["image"]), axis=1), 1, rtol=1e-5)
    text = np.full((len(TEXT), 1), 3, np.int32)
    tokens = MODEL.encode_image(v, DATA["image"])[1]["tokens"]
    for _ in range(4):
        hidden = MODEL.decode(v, tokens, text)
        text = np.concatenate([text, (hidden[:, -1] @ MODEL.head(v).T).argmax(1)[:, None]], axis=1)
    assert predict["generate"](DATA["image"]).tolist() == text[:, 1:].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": 1.5}, r"parallel=1\.5 is a share"),
        ({"z_loss": -1.0}, r"z_loss=-1\.0 must be at least 0"),
        (
            {"parallel": 0.5, "model": dataclasses.replace(MODEL, decoder=TextDecoder(**SHAPE))},
            r"needs a MASK token: set model\.decoder\.mask_token=True",
        ),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **changes)
