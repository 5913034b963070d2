"""Resampled positions equal PyTorch's antialiased interpolation, which public weights are resampled with."""

import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.nn.positions import resample

from . import peers


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("grid", [(3, 3), (12, 12), (5, 9)])
def test_resample_equals_torch_interpolate(method, grid):
    torch = peers.torch()
    posemb = np.random.default_rng(0).normal(size=(1 + 7 * 7, 6)).astype(np.float32)
    image = torch.tensor(posemb[1:].reshape(1, 7, 7, 6).transpose(0, 3, 1, 2))
    theirs = torch.nn.functional.interpolate(image, grid, mode=method, antialias=True, align_corners=False)
    ours = resample(jnp.asarray(posemb), grid, prefix=1, method=method)
    np.testing.assert_array_equal(ours[0], posemb[0])
    np.testing.assert_allclose(ours[1:], theirs[0].permute(1, 2, 0).reshape(-1, 6), atol=1e-5)
