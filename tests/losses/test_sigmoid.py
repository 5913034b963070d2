"""The sigmoid loss against theory and against open_clip."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses import sigmoid_loss


def test_loss_at_initialisation_equals_theory():
    """10.07 for B=1024, d=768, t'=ln 10, b=-10: log(1+e^10) for the positives, (B-1) E log(1+e^(10cos-10)) beside."""
    losses = []
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed))
        image, text = (jax.random.normal(key, (1024, 768)) for key in keys)
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
        losses.append(sigmoid_loss(image, text, jnp.exp(jnp.log(10.0)), -10.0))
    assert abs(np.mean(losses) - 10.07) < 0.05


def test_equals_the_formula_that_open_clip_publishes(pairs):
    """SigLipLoss: -logsigmoid(labels * (scale x y^T + bias)).sum() / B, with labels 2 I - 1."""
    image, text, *_ = pairs.random_pairs(21, 16)
    got = pairs.dense_gradients(sigmoid_loss, (image, text, jnp.float32(10), jnp.float32(-10)))

    def published(image, text, scale, bias):
        logits = scale * image @ text.T + bias
        labels = 2 * jnp.eye(21) - jnp.ones((21, 21))
        return -jax.nn.log_sigmoid(labels * logits).sum() / 21

    want = pairs.dense_gradients(published, (image, text, jnp.float32(10), jnp.float32(-10)))
    pairs.assert_close(got, want)


def test_equals_the_installed_open_clip(pairs):
    torch = pytest.importorskip("torch")
    image, text, *_ = pairs.random_pairs(21, 16)
    value, gradients = pairs.dense_gradients(sigmoid_loss, (image, text, jnp.float32(12), jnp.float32(-9)))
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in (image, text, np.float32(12), np.float32(-9))]
    want = pairs.open_clip_losses().SigLipLoss()(*leaves)
    want.backward()
    pairs.assert_close(value, want.detach().numpy())
    pairs.assert_close(gradients, tuple(x.grad.numpy() for x in leaves))
