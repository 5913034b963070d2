"""SigLIP 2's weighted sum: when its parts begin, what they are, on meshes and in microbatches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import accumulate, partition, tree
from vlm_jax import config as configs
from vlm_jax.data.prompted import Prompted
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.experiment import open_experiment
from vlm_jax.mesh import Layout, put
from vlm_jax.models.captioner import TextDecoder
from vlm_jax.models.siglip2 import Prototypes, SigLIP2
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.nn.crops import random_crops
from vlm_jax.overrides import override
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.contrastive import Contrastive
from vlm_jax.tasks.siglip2 import CROP, MASK, PARALLEL, SigLIP2Pretraining, answers, overlaid, random_patches

from ..nn.random_parameters import random_parameters

BATCH, LENGTH = 8, 6
SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32"}
HEAD = Prototypes(hidden=8, bottleneck=4, count=5)
MODEL = SigLIP2(
    image=ViT(**SHAPE, patch_size=4, image_size=8, pool="map"),
    text=TextTransformer(**SHAPE, vocab_size=16, length=LENGTH, out_dim=16),
    decoder=TextDecoder(**SHAPE, vocab_size=16, length=LENGTH, mask_token=True, eos_id=1),
    crops=HEAD,
    patches=dataclasses.replace(HEAD, count=6),
)
PROMPTED = Prompted(Text(length=LENGTH, bos=True, pad="pad"))
TASK = SigLIP2Pretraining(
    MODEL, prompted=PROMPTED, crops=2, crop_size=4, crop_area=(0.2, 0.5), centre_momentum=1.0, parallel=0.5, prompt="c"
)
RNG = np.random.default_rng(0)
TARGET = (np.arange(LENGTH) >= RNG.integers(1, 4, (BATCH, 1))) & (np.arange(LENGTH) < RNG.integers(4, 7, (BATCH, 1)))
DATA = {
    "image": RNG.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8),
    "text": RNG.integers(2, 16, (BATCH, LENGTH)).astype(np.int32),
    "caption_id": np.arange(BATCH, dtype=np.int32),
    "decoder_text": RNG.integers(2, 16, (BATCH, LENGTH)).astype(np.int32),
    "decoder_target": TARGET,
}


@functools.cache
def variables():
    found = random_parameters(MODEL)
    average = jax.tree.map(lambda x: x + 0.1, found["params"])
    return found, average


def context(step=9, mesh=None, **options):
    options = {"key": jax.random.key(0), "total_steps": 10, "ema": variables()[1]} | options
    return Context(step=jnp.int32(step), mesh=mesh or Layout().make(jax.devices()[:1]), **options)


def test_variables():
    found = jax.eval_shape(MODEL.init, jax.random.key(0))
    names = {name.split("/")[0] for name in tree.flatten(found["params"])}
    assert names == {"image", "text", "logit_scale", "logit_bias", "decoder", "mask_token", "crop_head", "patch_head"}
    assert {name: leaf.shape for name, leaf in found["state"].items()} == {"crop_centre": (5,), "patch_centre": (6,)}
    towers = MODEL.towers
    assert jax.tree.structure(towers.init(jax.random.key(0))["params"]) == jax.tree.structure(
        {name: found["params"][name] for name in ("image", "text", "logit_scale", "logit_bias")}
    )


def row_keys(number):
    return [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), row), number) for row in range(BATCH)]


def naive(v, average):
    """The four losses by themselves, with all logits in memory."""
    params, state = v["params"], v["state"]
    pixels = jnp.asarray(DATA["image"] / 127.5 - 1, jnp.float32)

    hide = jnp.stack([jax.random.bernoulli(key, 0.5) for key in row_keys(PARALLEL)])[:, None]
    hide = hide & (np.arange(LENGTH) >= np.argmax(TARGET, axis=1)[:, None])
    text, tokens = DATA["decoder_text"], MODEL.encode_image(v, DATA["image"])[1]["tokens"]
    hidden = MODEL.decode(v, tokens, text[:, :-1], hidden=hide[:, :-1])
    log_p = jax.nn.log_softmax(hidden @ MODEL.head(v).T)
    places = [(row, t) for row in range(BATCH) for t in range(1, LENGTH) if TARGET[row, t]]
    decoder = -sum(log_p[row, t - 1, text[row, t]] for row, t in places) / len(places)

    def entropy(scores, wanted, centre):
        target = jax.nn.softmax((wanted - centre) / 0.04)
        return -(target * jax.nn.log_softmax(scores / 0.1)).sum(-1)

    pooled, patches = MODEL.features(average, pixels)
    crops = random_crops(pixels, jnp.stack(row_keys(CROP)), count=2, size=4, area=(0.2, 0.5))
    distill = 0
    for k in range(2):
        seen = MODEL.crop_scores(params, MODEL.features(params, crops[:, k])[0])
        distill += entropy(seen, MODEL.crop_scores(average, pooled), state["crop_centre"]).mean() / 2
    where = random_patches(jnp.stack(row_keys(MASK)), 4, 0.5)
    seen = MODEL.patch_scores(params, MODEL.features(params, pixels, where)[1])
    each = entropy(seen, MODEL.patch_scores(average, patches), state["patch_centre"])
    return {
        "contrastive_loss": Contrastive(MODEL.towers).loss(v, DATA, context())[0],
        "decoder_loss": decoder,
        "distill_loss": distill,
        "masked_loss": (each * where).sum() / where.sum(),
    }


@functools.cache
def expected():
    """Loss, parts and gradients, before the last fifth of the run and in it."""
    v, average = variables()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(params, late):
        parts = naive(v | {"params": params}, average)
        parts |= {name: late * parts[name] for name in ("distill_loss", "masked_loss")}
        weights = {"contrastive_loss": 1, "decoder_loss": 1, "distill_loss": 0.25, "masked_loss": 0.0625}
        return sum(weights[name] * part for name, part in parts.items()), parts

    return {late: jax.device_get(total(v["params"], float(late))) for late in (False, True)}


CASES = [
    pytest.param(Layout(), 1, 1, id="one"),
    pytest.param(Layout(), 2, 2, id="microbatches", marks=pytest.mark.full),
    pytest.param(Layout(data=2, fsdp=2, tensor=2, min_size=1), 8, 1, id="mesh", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("layout", "devices", "microbatches"), CASES)
def test_losses_and_gradients_are_those_of_the_equations(layout, devices, microbatches):
    """One program does both: self-distillation begins at step 8 of 10 without another compilation."""
    v, average = variables()
    mesh, traces = layout.make(jax.devices()[:devices]), []

    @jax.jit
    def step(params, average, batch, step):
        traces.append(1)
        ctx = dataclasses.replace(context(mesh=mesh, ema=average), step=step)
        make = lambda p, s: {"params": p, "state": s}
        with shard.under(mesh):
            if microbatches == 1:
                return accumulate.whole(TASK, make, params, v["state"], batch, ctx)
            return accumulate.cached(TASK, make, params, v["state"], batch, ctx, microbatches)

    place = lambda p: jax.device_put(p, partition.shardings(p, layout, mesh, {}))
    params, teacher = place(v["params"]), place(average)
    batch = put(DATA, np.arange(BATCH), BATCH, mesh)
    for at in (7, 8):
        found = jax.device_get(step(params, teacher, batch, jnp.int32(at)))
        (wanted, parts), wanted_grads = expected()[at == 8]
        np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
        for name, part in parts.items():
            np.testing.assert_allclose(found.metrics[name], part, rtol=1e-4, err_msg=name)
        flat = tree.flatten(wanted_grads)
        largest = max(np.abs(g).max() for g in flat.values())
        for name, grad in tree.flatten(found.grads).items():
            np.testing.assert_allclose(grad, flat[name], rtol=1e-3, atol=2e-6 * largest, err_msg=name)
    assert len(traces) == 1


def test_the_centre_follows_the_teacher():
    """From the step on at which distillation begins, and not before."""
    v, average = variables()
    task = dataclasses.replace(TASK, centre_momentum=0.5)
    run = jax.jit(lambda step: task.loss(v, DATA, dataclasses.replace(context(), step=step))[1]["state"])
    before, after = run(jnp.int32(7)), run(jnp.int32(8))

    @jax.jit
    def means(average):
        pooled, tokens = MODEL.features(average, DATA["image"] / 127.5 - 1)
        crops, patches = MODEL.crop_scores(average, pooled), MODEL.patch_scores(average, tokens)
        return {"crop_centre": crops.mean(0), "patch_centre": patches.mean((0, 1))}

    for name, mean in means(average).items():
        np.testing.assert_array_equal(before[name], v["state"][name])
        np.testing.assert_allclose(after[name], (v["state"][name] + mean) / 2, rtol=1e-4, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    v, average = variables()

    def loss(average):
        found, _ = TASK.features(v, DATA, context(ema=average))
        return found["distill"].sum() + found["masked"].sum()

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(average)))


def test_frozen_parameters_teach_as_they_are():
    params = {"a": {"x": 1, "y": 2}, "b": 3}
    assert overlaid(params, {"a": {"y": 5}}) == {"a": {"x": 1, "y": 5}, "b": 3}


def test_losses_of_no_weight_are_left_out():
    """And then neither boxes nor an average are needed."""
    task = dataclasses.replace(TASK, decoder_weight=0.0, distill_weight=0.0, masked_weight=0.0, prompted=None)
    assert set(task.batch_spec(2)) == {"image", "text", "caption_id"}
    batch = {name: DATA[name] for name in task.batch_spec(BATCH)}
    found = jax.jit(lambda: task.loss(variables()[0], batch, context(ema=None))[0])()
    np.testing.assert_allclose(found, expected()[False][0][1]["contrastive_loss"], rtol=1e-5)
    assert set(task.predict(variables()[0])) == {"image_embedding", "text_embedding", "logit_scale"}


def test_what_is_hidden():
    target = jnp.array([[False, False, True, True, False]])
    assert answers(target).tolist() == [[False, False, True, True, True]]
    where = random_patches(jax.random.split(jax.random.key(0), 50), 10, 0.3)
    assert (where.sum(1) == 3).all() and 0.1 < where.mean(0).min() and where.mean(0).max() < 0.6


def test_predictions():
    v, _ = variables()
    predict = TASK.predict(v)
    prompt = [3, *PROMPTED.text.model.encode("c")]
    written = predict["generate"](DATA["image"])
    assert written.shape == (BATCH, LENGTH - len(prompt))
    asked = np.tile(np.array(prompt, np.int32), (BATCH, 1))
    assert written.tolist() == predict["generate"](DATA["image"], asked).tolist()

    caption = np.array([[3, 5, 6, 1, 0]] * BATCH, np.int32)
    text = np.concatenate([asked, caption[:, 1:]], axis=1)

    @jax.jit
    def log_probabilities(v):
        tokens = MODEL.encode_image(v, DATA["image"])[1]["tokens"]
        return jax.nn.log_softmax(MODEL.decode(v, tokens, text) @ MODEL.head(v).T)

    log_p = log_probabilities(v)
    wanted = sum(log_p[:, t - 1, text[0, t]] for t in (2, 3, 4))
    np.testing.assert_allclose(predict["log_likelihood"](DATA["image"], caption), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masked_weight": -1.0}, "must be at least 0"),
        ({"begin": 1.5}, r"begin=1\.5 is a share"),
        ({"masked": 1.0}, r"masked=1\.0 is a share of the patches"),
        ({"teacher_temperature": 0.0}, "must be above 0"),
        ({"prompted": None}, r"prompted\.text\.length=None, model\.decoder\.length=6"),
        ({"crop_size": 6}, "crop_size=6: wanted is at least one, of whole patches of 4"),
        ({"model": dataclasses.replace(MODEL, decoder=TextDecoder(**SHAPE, length=LENGTH))}, "needs a MASK token"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **changes)


def test_what_the_model_cannot_be():
    for changes, message in (
        ({"image": dataclasses.replace(MODEL.image, pool="cls")}, "SigLIP 2 has no CLS token"),
        ({"decoder": TextDecoder(**SHAPE | {"width": 8})}, r"decoder\.context_width=8, the image tower's .* 16 wide"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(MODEL, **changes)
    with pytest.raises(UserError, match="wanted is >= 1"):
        Prototypes(count=0)


def test_a_teacher_is_asked_for():
    with pytest.raises(UserError, match=r"needs a teacher: set config\.ema"):
        jax.eval_shape(lambda v: TASK.features(v, DATA, context(ema=None)), variables()[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ema", "None", r"need a teacher: set config\.ema"),
        ("data.prompted.text.canonicalise", "none", r"config\.data\.prompted and config\.task\.prompted differ"),
    ],
)
def test_a_run_that_does_not_suit_is_refused(key, value, message, tmp_path):
    config = configs.load("siglip2_tiny")
    override(config, "data.source.source.size", "50")
    override(config, key, value)
    with pytest.raises(UserError, match=message):
        open_experiment(config, tmp_path / "assets")
