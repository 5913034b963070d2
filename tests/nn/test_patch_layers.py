"""EVE's layers against their equations, written out over images, rows and patches (arXiv:2406.11832, section 3), and
EVEv2's against convolutions (arXiv:2502.06788, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.nn.functional import Functional
from vlm_jax.nn.patch_layers import PatchAligning, PatchConvolutions, PatchEmbedding, pool_to

from .random_parameters import random_parameters

WIDTH, OUT, HEADS = 8, 12, 2
GRIDS = np.array([[[4, 6], [2, 4], [0, 0]], [[2, 2], [0, 0], [0, 0]]], np.int32)
PATCHES = np.random.default_rng(0).normal(size=(2, 40, 27)).astype(np.float32)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def attention(query, keys, values):
    """One query; logits over the root of the whole width, head by head."""
    width, out = len(query), []
    for h in range(HEADS):
        part = slice(h * width // HEADS, (h + 1) * width // HEADS)
        weights = softmax(keys[:, part] @ query[part] / np.sqrt(width))
        out.append(weights @ values[:, part])
    return np.concatenate(out)


def few(x, others, p):
    keys, values = np.split(linear(norm(others, p["ln_kv"]), p["kv"]), 2, axis=-1)
    return x + linear(attention(linear(norm(x, p["ln_q"]), p["q"]), keys, values), p["out"])


def gelu(x):
    return np.asarray(jax.nn.gelu(jnp.asarray(x), approximate=False))


def image_tokens(patches, rows, columns, p):
    """CLS, then the pooled tokens of each row of one image."""
    x = linear(patches, p["patch"]).reshape(rows, columns, -1)
    pooled = []
    for r in range(0, rows, 2):
        for c in range(0, columns, 2):
            near = x[r : r + 2, c : c + 2].reshape(4, -1)
            pooled.append(few(near.mean(0), near, p["local"]))
    pooled = np.stack(pooled)
    return few(p["cls"], pooled, p["all"]), pooled


def numpy_parameters(module):
    return jax.tree.map(np.asarray, random_parameters(module))


def test_patch_embedding():
    module = Functional(PatchEmbedding, 27, WIDTH, OUT, HEADS, 2, dtype="float32")
    p = numpy_parameters(module)
    ours = np.asarray(jax.jit(module)(p, PATCHES, GRIDS))
    mlp = lambda x: linear(gelu(linear(x, p["mlp"]["fc1"])), p["mlp"]["fc2"])
    assert ours.shape == (2, 10 + 3 + 1, OUT)
    for row, grids in enumerate(GRIDS):
        patch = vector = 0
        for image, (rows, columns) in enumerate(grids):
            if rows == 0:
                continue
            cls, pooled = image_tokens(PATCHES[row, patch : patch + rows * columns], rows, columns, p)
            np.testing.assert_allclose(ours[row, vector : vector + len(pooled)], mlp(pooled), atol=1e-5)
            np.testing.assert_allclose(ours[row, 10 + image], mlp(cls), atol=1e-5)
            patch, vector = patch + rows * columns, vector + len(pooled)
        np.testing.assert_allclose(ours[row, -1], mlp(p["split"]), atol=1e-5)


def convolved(image, kernel, bias):
    """By a convolution whose stride is its size; `kernel` as a matrix."""
    stride = round((len(kernel) / image.shape[-1]) ** 0.5)
    kernel = kernel.reshape(stride, stride, image.shape[-1], -1)
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(image[None], kernel, (stride, stride), "VALID", dimension_numbers=layout)
    return np.asarray(out[0] + bias)


def test_patch_convolutions():
    """Two convolutions over the pixels of each image."""
    module = Functional(PatchConvolutions, 27, WIDTH, OUT, 2, dtype="float32")
    p = numpy_parameters(module)
    ours = np.asarray(jax.jit(module)(p, PATCHES, GRIDS))
    assert ours.shape == (2, 10 + 3 + 1, OUT)
    for row, grids in enumerate(GRIDS):
        patch = vector = 0
        for rows, columns in grids:
            patches = PATCHES[row, patch : patch + rows * columns].reshape(rows, columns, 3, 3, 3)
            patch += rows * columns
            if rows == 0:
                continue
            pixels = patches.swapaxes(1, 2).reshape(3 * rows, 3 * columns, 3)
            first = gelu(convolved(pixels, p["conv1"]["kernel"], p["conv1"]["bias"]))
            tokens = convolved(first, p["conv2"]["kernel"], p["conv2"]["bias"]).reshape(-1, OUT)
            np.testing.assert_allclose(ours[row, vector : vector + len(tokens)], tokens, atol=1e-5)
            vector += len(tokens)
        np.testing.assert_array_equal(ours[row, 10:], [p["cls"]] * 3 + [p["split"]])


def test_patch_aligning():
    features = np.random.default_rng(1).normal(size=(2, 3, 4, WIDTH)).astype(np.float32)
    module = Functional(PatchAligning, WIDTH, 6, 4, HEADS, dtype="float32")
    p = numpy_parameters(module)
    ours = np.asarray(module(p, features))
    for row in range(2):
        for cell in range(3):
            taps = [linear(norm(features[row, cell, i], p[f"ln{i}"]), p[f"tap{i}"]) for i in range(4)]
            others = np.stack(taps[1:])
            expected = linear(features[row, cell, 0], p["last"]) + linear(attention(taps[0], others, others), p["out"])
            np.testing.assert_allclose(ours[row, cell], expected, atol=1e-5)


def test_pooling_to_the_grid_of_another():
    x = np.random.default_rng(2).normal(size=(2, 10, 3)).astype(np.float32)
    grids = np.array([[[2, 3], [1, 4]], [[5, 2], [0, 0]]], np.int32)
    ours = np.asarray(pool_to(x, grids, 3))
    assert ours.shape == (2, 2, 3, 3, 3) and not ours[1, 1].any()
    for row, of_row in enumerate(grids):
        at = 0
        for image, (rows, columns) in enumerate(of_row):
            cells = x[row, at : at + rows * columns].reshape(rows, columns, 3)
            at += rows * columns
            for i in range(3 if rows else 0):
                for j in range(3):
                    a, b = i * rows // 3, -(-(i + 1) * rows // 3)
                    c, d = j * columns // 3, -(-(j + 1) * columns // 3)
                    np.testing.assert_allclose(ours[row, image, i, j], cells[a:b, c:d].mean((0, 1)), atol=1e-6)
