"""InfoNCE against theory, at its limits, and against open_clip."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses import infonce_loss


def test_equal_features_at_the_largest_scale_give_log_of_the_batch(pairs):
    """Every logit is 100: an exponential without the maximum subtracted would overflow."""
    features = jnp.tile(jnp.array([[1.0, 0, 0, 0]]), (32, 1))
    args = (features, features, jnp.float32(100))
    for value, gradients in (
        pairs.dense_gradients(infonce_loss, args),
        pairs.gradient_outside(infonce_loss, pairs.make_mesh(data=8), "data", args),
    ):
        np.testing.assert_allclose(value, np.log(32), rtol=1e-5)
        assert all(np.isfinite(x).all() for x in gradients)


def test_equals_the_formula_that_open_clip_publishes(pairs):
    """ClipLoss: the mean of both cross-entropies of scale x y^T with labels 0..B-1."""
    image, text, *_ = pairs.random_pairs(21, 16)
    args = (image, text, jnp.float32(14.3))

    def published(image, text, scale):
        logits = scale * image @ text.T
        labels = jnp.arange(21)
        rows = -jax.nn.log_softmax(logits, axis=1)[labels, labels].mean()
        columns = -jax.nn.log_softmax(logits.T, axis=1)[labels, labels].mean()
        return (rows + columns) / 2

    pairs.assert_close(pairs.dense_gradients(infonce_loss, args), pairs.dense_gradients(published, args))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_torch(pairs, smoothing):
    """open_clip's ClipLoss where there is no smoothing; torch's cross_entropy, which it calls, where there is."""
    torch = pytest.importorskip("torch")
    image, text, *_ = pairs.random_pairs(21, 16)
    args = (image, text, jnp.float32(20))
    value, gradients = pairs.dense_gradients(infonce_loss, args, label_smoothing=smoothing)
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in args]
    if smoothing:
        logits, labels = leaves[2] * leaves[0] @ leaves[1].T, torch.arange(21)
        cross_entropy = torch.nn.functional.cross_entropy
        want = sum(cross_entropy(x, labels, label_smoothing=smoothing) for x in (logits, logits.T)) / 2
    else:
        want = pairs.open_clip_losses().ClipLoss()(*leaves)
    want.backward()
    pairs.assert_close(value, want.detach().numpy())
    pairs.assert_close(gradients, tuple(x.grad.numpy() for x in leaves))


def test_target_is_uniform_over_equal_ids():
    """Two images of one text: probability one half each is what the loss asks for, at a cost of log 2."""
    text = jnp.eye(4)[jnp.array([0, 0, 1])]
    loss = infonce_loss(text, text, 100.0, ids=jnp.array([5, 5, 7]))
    np.testing.assert_allclose(loss, 2 / 3 * np.log(2), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
        infonce_loss(jnp.ones((2, 2)), jnp.ones((2, 2)), 1.0, label_smoothing=smoothing)
