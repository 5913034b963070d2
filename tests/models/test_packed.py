"""What is packed gets the embedding and the gradients that it gets alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.data.packing import patchify, text_lengths
from vlm_jax.data.packing_bins import pack_texts
from vlm_jax.errors import UserError
from vlm_jax.models.text import TextTransformer
from vlm_jax.models.two_tower import TwoTower
from vlm_jax.models.vit import ViT

SHAPE = {"width": 16, "depth": 2, "num_heads": 2, "dtype": "float32", "out_dim": 6}
IMAGE = ViT(**SHAPE, patch_size=4, image_size=16)
TEXT = TextTransformer(**SHAPE, vocab_size=12, length=6, eos_id=9, pad_id=9, pool="eos", mask_padding=True)
GRIDS = [[(2, 3), (4, 1)], [(1, 2), (3, 4), (2, 2)]]  # of the images of two rows
COUNT, TIME = 4, 22
TEXTS = np.array([[1, 2, 9, 9, 9, 9], [3, 4, 5, 6, 7, 9], [8, 9, 9, 9, 9, 9], [1, 2, 3, 4, 5, 6], [5, 9, 9, 9, 9, 9]])


def images(row):
    rng = np.random.default_rng(row)
    return [rng.normal(size=(4 * rows, 4 * cols, 3)).astype(np.float32) for rows, cols in GRIDS[row]]


def packed_images():
    """Patches, positions, grids and segments of all images in two rows."""
    patches = np.full((2, TIME, 48), 7, np.float32)  # padding may be anything
    positions, ids = np.zeros((2, TIME, 2), np.int32), np.zeros((2, TIME), np.int32)
    grids = np.zeros((2, COUNT, 2), np.int32)
    for row in range(2):
        end = 0
        for i, (image, (rows, cols)) in enumerate(zip(images(row), GRIDS[row])):
            place = slice(end, end := end + rows * cols)
            patches[row, place] = patchify(image, 4)
            positions[row, place] = np.stack(np.divmod(np.arange(rows * cols), cols), axis=1)
            ids[row, place], grids[row, i] = i + 1, (rows, cols)
    return patches, positions, grids, ids


def weights(dim, count=5):
    """The gradient that arrives at each embedding."""
    return np.random.default_rng(3).normal(size=(count, dim)).astype(np.float32)


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"posemb": "factorised"}, marks=pytest.mark.full),
        pytest.param({"posemb": "sincos2d", "pool": "gap"}, marks=pytest.mark.full),
        pytest.param({"posemb": "factorised", "pool": "gap", "pre_norm": True, "scan": True}, marks=pytest.mark.full),
        pytest.param({"remat": "attention"}, marks=pytest.mark.full),
    ],
)
def test_packed_images_are_as_alone(parameters, changes):
    model = dataclasses.replace(IMAGE, **changes)
    params, w = parameters(model), weights(6)
    alone_images = [image[None] for row in range(2) for image in images(row)]

    def alone(params, images):
        out = jnp.concatenate([model.apply(params, image)[0] for image in images])
        return (out * w).sum(), out

    def packed(params, patches, *rest):
        out = model.apply_packed(params, patches, *rest)
        out = jnp.concatenate([out[0, :2], out[1, :3]])
        return (out * w).sum(), out

    patches, *rest = packed_images()
    gradients = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))
    (_, want), (want_params, want_images) = gradients(alone)(params, alone_images)
    (_, got), (got_params, got_patches) = gradients(packed)(params, patches, *rest)
    close(got, want)
    close(got_params, want_params)
    want_patches = np.zeros_like(patches)
    for row, offset in ((0, 0), (1, 2)):
        flat = np.concatenate([patchify(np.asarray(g[0]), 4) for g in want_images[offset : offset + len(GRIDS[row])]])
        want_patches[row, : len(flat)] = flat
    close(got_patches, want_patches)


def packed_texts(pad_id=9, eos_id=9):
    lengths = text_lengths(TEXTS, pad_id, eos_id)
    packed, left_out = pack_texts([text[:n] for text, n in zip(TEXTS, lengths)], length=14, rows=2, pad_id=pad_id)
    assert not left_out
    found = [[], []]  # which text each segment is
    for row, (tokens, ids) in enumerate(zip(packed["text"], packed["text_segment_ids"])):
        for segment in range(1, ids.max() + 1):
            real = tokens[ids == segment].tolist()
            found[row].append(next(i for i, n in enumerate(lengths) if TEXTS[i, :n].tolist() == real))
    return packed, found


@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": "mean"}, {"pool": "map"}, {"causal": True, "mask_padding": False}, {"causal": True, "scan": True}],
)
def test_packed_texts_are_as_alone(parameters, changes):
    model = dataclasses.replace(TEXT, **changes)
    params, w = parameters(model), weights(6)
    batch, found = packed_texts()
    order = [i for row in found for i in row]

    def alone(params):
        out = model.apply(params, TEXTS)[0]
        return (out * w).sum(), out

    def packed(params):
        out = model.apply_packed(params, batch["text"], batch["text_segment_ids"], COUNT)
        out = jnp.concatenate([out[row, : len(found[row])] for row in range(2)])
        out = out[np.argsort(order)]
        return (out * w).sum(), out

    gradients = lambda f: jax.jit(jax.value_and_grad(f, has_aux=True))
    (_, want), want_params = gradients(alone)(params)
    (_, got), got_params = gradients(packed)(params)
    close(got, want)
    close(got_params, want_params)


@pytest.mark.full
def test_padding_and_missing_segments_pass_no_nan(parameters):
    params = parameters(IMAGE)
    arrays = [np.zeros_like(array) for array in packed_images()]
    out, grads = jax.value_and_grad(lambda p: IMAGE.apply_packed(p, *arrays).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, grads)))


@pytest.mark.full
def test_bf16_is_near_f32(parameters):
    model = dataclasses.replace(IMAGE, pool="gap")
    params, arrays = parameters(model), packed_images()
    there = arrays[2][..., 0] > 0
    want = model.apply_packed(params, *arrays)[there]
    got = dataclasses.replace(model, dtype="bfloat16").apply_packed(params, *arrays)[there]
    assert np.abs(got.astype(np.float32) - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.full
def test_uint8_patches_are_normalised_as_images_are(parameters):
    model = TwoTower(image=IMAGE, text=TEXT, image_mean=(0.1, 0.4, 0.6), image_std=(0.2, 0.3, 0.5))
    variables = parameters(model)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    positions = np.stack(np.divmod(np.arange(16), 4), axis=1)[None]
    want, _ = model.encode_image(variables, image)
    got = model.encode_packed_images(
        variables, patchify(image[0], 4)[None], positions, np.array([[[4, 4]]]), np.ones((1, 16), np.int32)
    )
    close(got[0], want)


@pytest.mark.parametrize(
    "model, says",
    [
        (dataclasses.replace(IMAGE, pool="cls"), "no CLS token"),
        (dataclasses.replace(IMAGE, stem_channels=(4,)), "stem_channels"),
        (dataclasses.replace(IMAGE, patch_dropout=0.5), "Packing.drop"),
        (dataclasses.replace(TEXT, pool="last"), "no last token"),
        (dataclasses.replace(TEXT, pool="map", eos_id=None), "keep their end token"),
        (dataclasses.replace(TEXT, mask_padding=False), "mask_padding=True"),
        (dataclasses.replace(TEXT, mask_padding=False, causal=True, pool="map"), "mask_padding=True"),
    ],
)
def test_models_that_cannot_be_packed_say_so(model, says):
    with pytest.raises(UserError, match=says):
        model.validate_packed()


def test_factorised_positions_end(parameters):
    model = dataclasses.replace(IMAGE, posemb="factorised")
    with pytest.raises(UserError, match="5 x 4 patches, factorised positions are for 4"):
        model.apply(parameters(model), np.zeros((1, 20, 16, 3), np.float32))
