import jax
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.resnet import ResNet

from .random_parameters import random_parameters

IMAGE = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def small(large_stem):
    return Functional(ResNet, (8, 16), (2, 1), large_stem=large_stem, groups=4, dtype="float32")


@pytest.mark.parametrize(("large_stem", "side"), [(False, 16), (True, 4)])
def test_every_stage_but_the_first_halves_the_map(large_stem, side):
    network = small(large_stem)
    out = jax.jit(network)(random_parameters(network), IMAGE)
    assert out.shape == (3, side, side, 16)


def test_an_image_does_not_depend_on_others():
    network = small(False)
    params = random_parameters(network)
    run = jax.jit(network)
    np.testing.assert_allclose(run(params, IMAGE)[1:2], run(params, IMAGE[1:2]), rtol=1e-4, atol=1e-4)


def test_parameters():
    """A shortcut is there where shapes change, and nowhere else."""
    params = tree.flatten(jax.eval_shape(small(False).init, jax.random.key(0)))
    shortcuts = {name.split("/")[0] for name in params if "shortcut" in name}
    assert shortcuts == {"stage1_block0"}
    assert params["stage1_block0/first/conv/kernel"].shape == (3, 3, 8, 16)
