import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.data.conversation_images import FixedImages, NativeImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.errors import UserError
from vlm_jax.generate import Sampling
from vlm_jax.mesh import Layout
from vlm_jax.models.decoder import LanguageModel
from vlm_jax.models.eve import Eve, Teacher
from vlm_jax.models.fuyu import Fuyu
from vlm_jax.models.llava import Llava
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.language_model import LanguageModeling

ROWS, LENGTH, VOCAB = 8, 24, 32
DECODER = LanguageModel(
    width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=48, vocab_size=VOCAB, length=40, dtype="float32", scan=False
)
VIT = ViT(width=24, depth=2, num_heads=2, image_size=16, patch_size=8, pool="cls", out_dim=None, dtype="float32")
MODELS = {
    "text": TextDecoder(DECODER),
    "llava": Llava(DECODER, image=VIT, layer=-2, images=2),
    "tiles": Llava(DECODER, image=VIT, layer=-2, images=2, tiles=3),
    "fuyu": Fuyu(DECODER, patch_size=4, patches=12, images=2, newline_id=7),
    "eve": Eve(DECODER, patch_size=4, patches=16, images=2, width=16, num_heads=2),
    "eve, taught": Eve(
        DECODER, patch_size=4, patches=16, images=2, width=16, num_heads=2,
        teacher=Teacher(image=VIT, layer=None, interval=1, num_heads=2),
    ),
}  # fmt: skip
TASKS = {name: LanguageModeling(model, LENGTH, z_loss=1e-3, end_id=2) for name, model in MODELS.items()}


def full(*names):
    return [pytest.param(name, marks=pytest.mark.full) for name in names]


def batch_of(name, rows=ROWS):
    """Two conversations a row, an image in the second, and padding."""
    rng = np.random.default_rng(0)
    batch = {
        "text": rng.integers(3, VOCAB, (rows, LENGTH)).astype(np.int32),
        "text_segment_ids": np.repeat([[1] * 7 + [2] * 14 + [0] * 3], rows, axis=0).astype(np.int32),
        "target_mask": rng.random((rows, LENGTH)) < 0.4,
        "text_image_ids": np.zeros((rows, LENGTH), np.int32),
        "image": rng.integers(0, 256, (rows, 3, 16, 16, 3)).astype(np.uint8),
        "patches": rng.integers(0, 256, (rows, 16, 48)).astype(np.uint8),
        "image_grids": np.zeros((rows, 2, 2), np.int32),
        "tile_grids": np.array([[[1, 2], [0, 0]]] * rows, np.int32),
        "tile_boxes": np.array([[[1, 0, 3, 2], [0, 0, 0, 0]]] * rows, np.int32),
    }
    places = {"text": 0, "llava": 4, "tiles": 4 + 2 * 3, "fuyu": 2 * 4}.get(name, 1 + 1 * 3)
    batch["text_image_ids"][:, 8 : 8 + places] = 1
    batch["image_grids"][:, 0] = (2, 3) if name == "fuyu" else (2, 4)
    batch["target_mask"] &= (batch["text_segment_ids"] > 0) & (batch["text_image_ids"] == 0)
    spec = TASKS[name].batch_spec(rows)
    batch = {key: batch[key][:, : spec[key].shape[1]] for key in spec}
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {k: (s.shape, s.dtype) for k, s in spec.items()}
    return batch


def variables_of(name):
    variables = jax.jit(TASKS[name].init)(jax.random.key(0))
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    return jax.tree.map(noise, variables)


def context(devices=1, **axes):
    mesh = Layout(**axes).make(jax.devices()[:devices])
    return Context(key=jax.random.key(1), step=jnp.int32(0), total_steps=10, mesh=mesh)


def value_and_grad(name, variables, batch, ctx):
    task = TASKS[name]

    def loss(params):
        with shard.under(ctx.mesh):
            return task.loss({"params": params}, batch, ctx)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


def test_labels_are_the_tokens_after():
    batch = batch_of("text", 1)
    labels = np.asarray(TASKS["text"].labels(batch))[0]
    for t in range(LENGTH):
        within = t + 1 < LENGTH and batch["text_segment_ids"][0, t] == batch["text_segment_ids"][0, t + 1] > 0
        wanted = batch["text"][0, t + 1] if within and batch["target_mask"][0, t + 1] else -1
        assert labels[t] == wanted


@pytest.mark.parametrize("name", ["text", "fuyu", "eve, taught", *full("llava", "tiles")])
def test_the_loss_is_that_of_each_target(name):
    task, batch, variables = TASKS[name], batch_of(name), variables_of(name)
    (loss, aux), _ = value_and_grad(name, variables, batch, context())
    hidden, found = jax.jit(lambda v, b: task.model.hidden(v, b, train=True))(variables, batch)
    logits = hidden @ task.model.head(variables).T
    labels = np.asarray(task.labels(batch))
    lse = jax.nn.logsumexp(logits, axis=-1)
    each = lse - jnp.take_along_axis(logits, labels.clip(0)[..., None], axis=-1)[..., 0] + 1e-3 * lse**2
    expected = each[labels >= 0].mean() + sum(w * x for w, x in found.get("losses", {}).values())
    np.testing.assert_allclose(loss, expected, atol=1e-5)
    assert aux["weight"] == (labels >= 0).sum() and ("alignment_loss" in aux["metrics"]) == ("taught" in name)


def test_rows_without_images_leave_the_alignment_out():
    """As a model starts, where what is not there has features of exactly zero."""
    name = "eve, taught"
    batch, variables = batch_of(name, 2), jax.jit(TASKS[name].init)(jax.random.key(0))
    batch["text_image_ids"][:], batch["image_grids"][:] = 0, 0
    (_, aux), gradient = value_and_grad(name, variables, batch, context())
    assert aux["metrics"]["alignment_loss"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["aligning"]))


@pytest.mark.parametrize("name", ["llava", *full("tiles", "eve, taught")])
def test_devices_do_not_change_it(name):
    batch, variables = batch_of(name), variables_of(name)
    (loss, _), gradient = value_and_grad(name, variables, batch, context())
    (other, _), of_eight = value_and_grad(name, variables, batch, context(8, data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(loss, other, atol=1e-5)
    for (key, a), b in zip(tree.flatten(gradient).items(), jax.tree.leaves(of_eight)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max()), err_msg=key)


@pytest.mark.parametrize("name", ["llava", *full("text", "tiles", "fuyu", "eve")])
def test_what_is_written_is_the_likeliest_token_each_time(name):
    """`answer` with its cache, against the whole sequence again for each token."""
    task = dataclasses.replace(TASKS[name], sampling=Sampling(max_tokens=5), end_id=None)
    batch, variables = batch_of(name, 2), variables_of(name)
    prompt = {key: x for key, x in batch.items() if key != "target_mask"}
    count = np.array([21, 18])
    prompt["text_segment_ids"] = (np.arange(LENGTH) < count[:, None]).astype(np.int32)
    written = np.asarray(task.predict(variables)["answer"](prompt))
    pad = lambda x: np.pad(x, ((0, 0), (0, 5)))
    whole = prompt | {key: pad(prompt[key]) for key in ("text", "text_segment_ids", "text_image_ids") if key in prompt}
    hidden = jax.jit(lambda v, b: task.model.hidden(v, b)[0])
    for step in range(5):
        logits = hidden(variables, whole) @ task.model.head(variables).T
        for row in range(2):
            at = count[row] + step
            assert written[row, step] == logits[row, at - 1].argmax()
            whole["text"][row, at], whole["text_segment_ids"][row, at] = written[row, step], 1


def test_the_score_of_an_answer_is_its_log_probability():
    task, batch, variables = TASKS["llava"], batch_of("llava", 2), variables_of("llava")
    score = task.predict(variables)["score"](batch)
    hidden, _ = task.model.hidden(variables, batch)
    each = jax.nn.log_softmax(hidden @ task.model.head(variables).T)
    labels = np.asarray(task.labels(batch))
    picked = jnp.take_along_axis(each, labels.clip(0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(score, jnp.where(labels >= 0, picked, 0).sum(1), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("llava", FixedImages(2, 3), "FixedImages.tokens=3: the model takes 4"),
        ("llava", NativeImages(), "the model takes FixedImages"),
        ("fuyu", FixedImages(), "the model takes NativeImages"),
        ("fuyu", NativeImages(2, 4, 12, 12, merge=2), "NativeImages.merge=2: the model takes 1"),
        ("eve, taught", NativeImages(2, 4, 16, 16, 2, True), "NativeImages.view=None: the model takes 16"),
        ("text", FixedImages(), "the model takes None"),
    ],
)
def test_images_that_the_model_does_not_take(name, images, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASKS[name], conversations=Conversations(images=images))


def test_longer_than_the_model():
    with pytest.raises(UserError, match="length=41: the model takes sequences of 2 to 40"):
        dataclasses.replace(TASKS["text"], length=41)
    task = dataclasses.replace(TASKS["text"], sampling=Sampling(max_tokens=17))
    prompt = {key: x for key, x in batch_of("text", 1).items() if key != "target_mask"}
    with pytest.raises(UserError, match="prompts of 24 tokens and answers of max_tokens=17"):
        task.predict(variables_of("text"))["answer"](prompt)
