"""The contrastive task on packed batches: the loss of all pairs that there are, however rows lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import accumulate, losses
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import Packing
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout, put
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT
from vlm_jax.nn import shard
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.contrastive import Contrastive

PACKING = Packing(
    patch_size=8, tokens=32, images=4, text_tokens=64, examples=6, rows=2, budgets=(4, 9), smallest=4, longest=4
)
TOKENS = Text(length=20)
SHAPE = {"width": 16, "depth": 1, "num_heads": 2, "dtype": "float32", "out_dim": 8}
MODEL = TwoTower(
    image=ViT(**SHAPE, patch_size=8, image_size=32, posemb="factorised", pool="map"),
    text=TextTransformer(
        **SHAPE,
        vocab_size=TOKENS.vocab_size,
        length=20,
        pool="mean",
        pad_id=TOKENS.pad_id,
        eos_id=TOKENS.eos_id,
        mask_padding=True,
    ),
    logit_bias_init=-2.0,
)
TASK = Contrastive(MODEL, packing=PACKING)
BATCH = 8


@functools.cache
def packed_batch():
    pipeline = Pipeline(
        Shapes(size=40, image_size=32), image=ImageTransform(size=32), text=TOKENS, packing=PACKING, threads=0
    )
    batches = pipeline.batches(seed=0, batch_size=BATCH, rows=np.arange(BATCH))
    batch = next(batches)
    batches.close()
    return {name: batch[name] for name in TASK.batch_spec(BATCH)}


@functools.cache
def variables():
    return jax.jit(MODEL.init)(jax.random.key(0))


def context(mesh):
    return Context(key=jax.random.key(0), step=jnp.int32(0), total_steps=1, mesh=mesh)


def gradients(task, batch, devices, microbatches=1):
    mesh = Layout().make(jax.devices()[:devices], 1)
    params = variables()["params"]  # outside of any mesh: they are kept for the next one
    with shard.under(mesh):
        of = lambda params, batch: (
            accumulate.whole(task, lambda p, s: {"params": p}, params, {}, batch, context(mesh))
            if microbatches == 1
            else accumulate.cached(task, lambda p, s: {"params": p}, params, {}, batch, context(mesh), microbatches)
        )
        found = jax.jit(of)(params, put(batch, np.arange(BATCH), BATCH, mesh))
        return jax.device_get((found.loss, found.metrics, found.grads))


@pytest.mark.full
def test_the_loss_is_that_of_the_pairs_one_by_one():
    batch, model = packed_batch(), variables()
    images, texts = [], []
    for row, pair in np.argwhere(batch["pair_mask"]):
        of = {name: array[row : row + 1] for name, array in batch.items()}
        image, text = (of[f"{name}_segment_ids"][0] == pair + 1 for name in ("image", "text"))
        rows, cols = of["image_grids"][0, pair]
        assert (of["patch_positions"][0, image] == np.stack(np.divmod(np.arange(rows * cols), cols), 1)).all()
        pixels = of["patches"][0, image].reshape(rows, cols, 8, 8, 3).swapaxes(1, 2).reshape(1, rows * 8, cols * 8, 3)
        tokens = np.full((1, 20), TOKENS.pad_id, np.int32)
        tokens[0, : text.sum()] = of["text"][0, text]
        images.append(MODEL.encode_image(model, pixels)[0])
        texts.append(MODEL.encode_text(model, tokens)[0])
    pairs = jnp.concatenate(images), jnp.concatenate(texts)
    scale, bias = MODEL.scale(model), MODEL.bias(model)
    want = losses.reference.sigmoid_loss(*pairs, scale, bias)
    loss, metrics, _ = gradients(TASK, batch, 1)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert metrics["packing/pairs"] == len(pairs[0])
    assert metrics["packing/left_out"] == BATCH // 2 * 6 - len(pairs[0])
    np.testing.assert_allclose(metrics["packing/image_fill"], (batch["image_segment_ids"] > 0).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "task",
    [
        dataclasses.replace(TASK, equal_captions="positives"),
        pytest.param(Contrastive(MODEL, packing=PACKING, objective="infonce"), marks=pytest.mark.full),
    ],
    ids=["sigmoid", "infonce"],
)
def test_devices_and_microbatches_change_nothing(task):
    batch = packed_batch()
    loss, metrics, grads = gradients(task, batch, 1)
    for devices, microbatches in ((4, 1), (2, 2)):
        got_loss, got_metrics, got_grads = gradients(task, batch, devices, microbatches)
        np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
        assert got_metrics["packing/pairs"] == metrics["packing/pairs"]
        for one, other in zip(jax.tree.leaves(got_grads), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"packing": dataclasses.replace(PACKING, patch_size=4)}, "Packing.patch_size=4, the model has 8"),
        ({"packing": dataclasses.replace(PACKING, longest=None)}, "positions for 4 patches a side"),
    ],
)
def test_a_model_that_does_not_fit_is_told(changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(TASK, **changes)
