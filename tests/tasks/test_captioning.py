"""The weighted sum of contrast and captioning: against dense arithmetic, on meshes, in microbatches."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import accumulate, flops, losses, partition, tree
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout, put
from vlm_jax.models.coca import CaptionDecoder, CoCa, ImageTower, TextTower
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.captioning import Captioning

from ..helpers import small_experiment

BATCH, LENGTH, VOCAB = 8, 6, 16
SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32"}
MODEL = CoCa(
    image=ImageTower(**SHAPE, patch_size=4, image_size=8, out_dim=16, queries=4, pool_heads=2),
    text=TextTower(**SHAPE, vocab_size=VOCAB, length=LENGTH, out_dim=16, pad_id=0, eos_id=1),
    decoder=CaptionDecoder(**SHAPE, vocab_size=VOCAB),
)
TASK = Captioning(MODEL)
RNG = np.random.default_rng(0)
ENDS = np.array([6, 3, 4, 6, 2, 5, 3, 6])[:, None]
TEXT = np.where(np.arange(LENGTH) < ENDS, RNG.integers(2, VOCAB, (BATCH, LENGTH)), 0).astype(np.int32)
DATA = {
    "image": RNG.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8),
    "text": TEXT,
    "caption_id": np.arange(BATCH, dtype=np.int32),
}


@functools.cache
def variables():
    params = jax.jit(MODEL.init)(jax.random.key(0))["params"]
    return {"params": jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)}


def dense(params):
    """Both losses with all logits in memory, one token's probability at a time picked out."""
    v = {"params": params}
    image, aux = MODEL.encode_image(v, DATA["image"])
    text, text_aux = MODEL.encode_text(v, TEXT)
    hidden = MODEL.decode(v, aux["tokens"], text_aux["tokens"])
    probabilities = jax.nn.log_softmax(hidden @ MODEL.head(v).T)
    picked = jnp.take_along_axis(probabilities[:, :-1], TEXT[:, 1:, None], axis=2)[..., 0]
    likelihood = jnp.where(TEXT[:, 1:] == 0, 0, picked).sum(1)
    caption = -likelihood.sum() / (TEXT[:, 1:] != 0).sum()
    return losses.infonce_loss(image, text, MODEL.scale(v)) + 2 * caption, (caption, likelihood)


@functools.cache
def expected():
    return jax.device_get(jax.jit(jax.value_and_grad(dense, has_aux=True))(variables()["params"]))


def gradients(task=TASK, layout=Layout(), devices=1, microbatches=1):
    mesh = layout.make(jax.devices()[:devices])
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    with shard.under(mesh):
        params = variables()["params"]
        params = jax.device_put(params, partition.shardings(params, layout, mesh, {}))
        make = lambda p, s: {"params": p}
        of = lambda params, batch: (
            accumulate.whole(task, make, params, {}, batch, ctx)
            if microbatches == 1
            else accumulate.cached(task, make, params, {}, batch, ctx, microbatches)
        )
        found = jax.jit(of)(params, put(DATA, np.arange(BATCH), BATCH, mesh))
        return jax.device_get(found)


MESHES = [
    pytest.param(Layout(), 1, 1, id="one", marks=pytest.mark.full),
    pytest.param(Layout(data=2, fsdp=2, tensor=2, min_size=1), 8, 1, id="mesh"),
    pytest.param(Layout(), 2, 2, id="microbatches"),
]


@pytest.mark.parametrize(("layout", "devices", "microbatches"), MESHES)
def test_loss_and_gradients_are_those_of_dense_arithmetic(layout, devices, microbatches):
    (wanted, (caption, _)), wanted_grads = expected()
    found = gradients(TASK, layout, devices, microbatches)
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["caption_loss"], caption, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["contrastive_loss"], wanted - 2 * caption, rtol=1e-4)
    flat = tree.flatten(wanted_grads)
    for name, grad in tree.flatten(found.grads).items():
        np.testing.assert_allclose(grad, flat[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_loss_of_no_weight_is_left_out():
    (_, (caption, _)), _ = expected()
    found = gradients(dataclasses.replace(TASK, contrastive_weight=0.0, caption_weight=1.0))
    assert set(found.metrics) == {"caption_loss"}
    np.testing.assert_allclose(found.loss, caption, rtol=1e-5)
    assert not np.any(found.grads["logit_scale"])
    assert np.any(found.grads["decoder"]["head"]["embedding"])


@pytest.mark.full
def test_any_contrastive_loss():
    model = dataclasses.replace(MODEL, logit_bias_init=-2.0)
    task = Captioning(model, objective="sigmoid", caption_weight=0.0)
    params = variables()["params"] | {"logit_bias": jnp.float32(-2.0)}
    mesh = Layout().make(jax.devices()[:1])
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    loss, aux = jax.jit(lambda p: task.loss({"params": p}, DATA, ctx))(params)
    v = {"params": params}
    image, text = model.encode_image(v, DATA["image"])[0], model.encode_text(v, TEXT)[0]
    wanted = losses.sigmoid_loss(image, text, model.scale(v), model.bias(v))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert set(aux["metrics"]) == {"logit_scale", "logit_bias", "contrastive_loss"}


@pytest.mark.parametrize("devices", [None, 4])
def test_predicted_likelihoods(devices):
    (_, (_, likelihood)), _ = expected()
    v, images, texts = variables(), DATA["image"], TEXT
    if devices:
        layout = Layout(tensor=2)
        mesh = layout.make(jax.devices()[:devices])
        v = {"params": jax.device_put(v["params"], partition.shardings(v["params"], layout, mesh, {}))}
    predict = TASK.predict(v)
    assert set(predict) == {"image_embedding", "text_embedding", "logit_scale", "log_likelihood", "generate"}
    np.testing.assert_allclose(predict["log_likelihood"](images, texts), likelihood, rtol=1e-4)


def test_an_end_token_that_pads_is_predicted_once():
    model = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, pad_id=1))
    text = jnp.array([[5, 6, 1, 1, 1, 1]])
    assert Captioning(model).labels(text).tolist() == [[6, 1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_weight": -1.0}, r"caption_weight=-1\.0: wanted is at least 0"),
        ({"caption_weight": 0.0, "contrastive_weight": 0.0}, "not both 0"),
        ({"objective": "sigmoid"}, "needs a bias"),
        ({"model": dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, length=1))}, "length=1: a caption"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **changes)


def test_flops_are_those_of_every_product():
    """The decoder by itself, and what captioning adds to the step: it, its vocabulary, and twice that backward."""
    width, mlp, time, context = 16, 64, LENGTH - 1, 3
    causal = time * (4 * width**2 + 2 * width * mlp) + 2 * time**2 * width
    cross = time * (2 * width**2 + 2 * width * mlp) + context * 2 * width**2 + 2 * time * context * width
    decoder = 2 * BATCH * (causal + cross)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    assert flops.count(MODEL.decode, variables(), shape(BATCH, 3, width), shape(BATCH, time, width)) == decoder
    mesh = Layout().make(jax.devices()[:2])
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    of = lambda task: lambda v: task.loss(v, DATA, ctx)[0]
    forward = lambda task: flops.count(of(task), variables())
    without = dataclasses.replace(TASK, caption_weight=0.0)
    assert forward(TASK) - forward(without) == decoder + 2 * BATCH * time * VOCAB * width


def test_logits_are_never_in_memory():
    """Neither all of them nor a device's part: a vocabulary of 4096 in tiles of it."""
    vocab, length = 8192, 64
    sizes = {"vocab_size": vocab}
    text = dataclasses.replace(MODEL.text, **sizes, length=length)
    task = Captioning(dataclasses.replace(MODEL, text=text, decoder=dataclasses.replace(MODEL.decoder, **sizes)))
    mesh = Layout().make(jax.devices()[:1])
    ctx = Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    batch = {name: jax.ShapeDtypeStruct((64, *s.shape[1:]), s.dtype) for name, s in task.batch_spec(1).items()}
    jaxpr = jax.make_jaxpr(jax.grad(lambda p, b: task.loss({"params": p}, b, ctx)[0]))(params, batch)
    most = max(math.prod(aval.shape) for aval in arrays(jaxpr.jaxpr))
    assert most < 64 * (length - 1) * vocab / 4


def arrays(jaxpr):
    """Every array of a program, those of loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars if hasattr(v.aval, "shape"))
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from arrays(inner)


def naive_greedy(v, prompt, most):
    """The likeliest token after the whole text, again and again, without a cache."""

    @jax.jit
    def following(text):
        image = MODEL.encode_image(v, DATA["image"])[1]["tokens"]
        tokens = MODEL.encode_text(v, jnp.pad(text, ((0, 0), (0, LENGTH - text.shape[1]))))[1]["tokens"]
        return (MODEL.decode(v, image, tokens) @ MODEL.head(v).T)[:, text.shape[1] - 1].argmax(1)

    text = prompt
    for _ in range(most):
        text = np.concatenate([text, following(text)[:, None]], axis=1)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize("devices", [None, 4])
def test_captions_are_those_of_whole_texts_at_each_step(devices):
    v, prompt = variables(), np.full((BATCH, 2), 3, np.int32)
    wanted = naive_greedy(v, prompt, LENGTH - 2)
    stop = int(wanted[0, 1])
    after_end = np.cumsum(wanted == stop, axis=1) - (wanted == stop) > 0
    if devices:
        layout = Layout(tensor=2)
        mesh = layout.make(jax.devices()[:devices])
        v = {"params": jax.device_put(v["params"], partition.shardings(v["params"], layout, mesh, {}))}
    write = dataclasses.replace(TASK, sampling=Sampling(stop=(stop,))).predict(v)["generate"]
    assert write(DATA["image"], prompt).tolist() == np.where(after_end, 0, wanted).tolist()


def test_where_captions_begin_and_end():
    write = dataclasses.replace(TASK, bos_id=3, sampling=Sampling(max_tokens=3, stop=(4,))).predict(variables())[
        "generate"
    ]
    assert write(DATA["image"]).tolist() == write(DATA["image"], np.full((BATCH, 1), 3)).tolist()
    assert write(DATA["image"]).shape == (BATCH, 3)
    assert write(DATA["image"], np.full((BATCH, 5), 3)).shape == (BATCH, 1)
    with pytest.raises(UserError, match="a prompt of 6 tokens leaves no room"):
        write(DATA["image"], TEXT)
    with pytest.raises(UserError, match="no bos_id that captions begin with"):
        TASK.predict(variables())["generate"](DATA["image"])


def test_texts_without_a_begin_token_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.text\.bos=False: the first token of a caption is given"):
        sizes = {"task__model__decoder__width": "16", "task__model__decoder__context_width": "16"}
        small_experiment(tmp_path, "coca_tiny", text__bos="False", **sizes)
