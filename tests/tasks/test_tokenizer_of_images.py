"""A trained autoencoder as the frozen tokenizer of a decoder: taken over whole, codebook and all, or refused."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import tree, warm_start
from vlm_jax.checkpoint import load_params
from vlm_jax.errors import UserError
from vlm_jax.interop import ours
from vlm_jax.models.chameleon import Chameleon
from vlm_jax.models.decoder import LanguageModel

from ..library.workdirs import autoencoder_workdir

DECODER = LanguageModel(width=16, depth=1, num_heads=2, num_kv_heads=2, mlp_dim=24, vocab_size=600, scan=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(autoencoder_workdir(tmp_path_factory.mktemp("run"), size=16))


@pytest.fixture(scope="module")
def model(path):
    return Chameleon(DECODER, tokenizer=configs.build(ours.open_run(Path(path)).model))


def test_parameters_and_codebook_are_those_of_the_run(model, path):
    params, said, steps = warm_start.load_parts({"tokenizer": path}, model, print)
    assert said == f"parameters of tokenizer from {path}"
    wanted = tree.flatten(load_params(path)[0])
    assert {name: x.shape for name, x in tree.flatten(params["tokenizer"]).items()} == {
        name: x.shape for name, x in wanted.items()
    }
    abstract = jax.eval_shape(model.init, jax.random.key(0))["state"]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    state = warm_start.load_state({"tokenizer": path}, zeros, steps)
    for name, value in tree.flatten(load_params(path, "state")[0]).items():
        np.testing.assert_array_equal(tree.flatten(state["tokenizer"])[name], value, err_msg=name)


def test_those_who_judged_it_in_training_are_left_behind(tmp_path):
    path = str(autoencoder_workdir(tmp_path, "fsq_tiny:shapes"))
    assert "perceptual" in load_params(path)[0]
    model = Chameleon(DECODER, tokenizer=configs.build(ours.open_run(Path(path)).model))
    found = warm_start.load_parts({"tokenizer": path}, model, print)[0]
    abstract = jax.eval_shape(model.init, jax.random.key(0))["params"]["tokenizer"]
    assert tree.flatten(found["tokenizer"]).keys() == tree.flatten(abstract).keys()


def test_a_codebook_of_another_size(model, path):
    other = dataclasses.replace(model.tokenizer.bottleneck, size=8)
    smaller = dataclasses.replace(model, tokenizer=dataclasses.replace(model.tokenizer, bottleneck=other))
    with pytest.raises(UserError, match=r"init_from\.tokenizer=.*: its bottleneck is VectorQuantiser\(size=16"):
        warm_start.load_parts({"tokenizer": path}, smaller, print)
    live = {"tokenizer": {"embedding": jnp.zeros((1, 8, 16))}}
    with pytest.raises(UserError, match=r"its state tokenizer/embedding is \(1, 16, 16\), wanted is \(1, 8, 16\)"):
        warm_start.load_state({"tokenizer": path}, live, {path: 3})


def test_a_run_without_images_has_no_state_to_take_over():
    assert warm_start.load_state({"decoder": "nowhere"}, {}, {}) == {}
