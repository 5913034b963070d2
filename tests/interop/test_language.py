"""Imported language models equal transformers': logits, gradients, and what they write with a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.errors import UserError
from vlm_jax.interop import language, names

from ..parity import peers
from . import peer_models as small
from .peer_models import assert_close, assert_gradients

SIZES = small.SIZES | {"vocab_size": 50, "max_position_embeddings": 32, "num_key_value_heads": 2}
TEXT = np.random.default_rng(0).integers(3, 50, (3, 9)).astype(np.int32)
WEIGHT = np.random.default_rng(1).normal(size=(3, 9, 50)).astype(np.float32)
KINDS = {
    "llama": ("Llama", {}),
    "llama-head_dim": ("Llama", {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
}


def theirs(kind):
    t = peers.transformers()
    name, options = KINDS[kind]
    config = getattr(t, f"{name}Config")(**SIZES | options, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return small.randomise(getattr(t, f"{name}ForCausalLM")(config))


def imported(model, folder):
    found = interop.source(small.save(model, folder))
    return configs.build(found.model), jax.tree.map(jnp.asarray, found.params())


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.full) if k == "mistral" else k for k in KINDS])
def test_logits_and_gradients(kind, tmp_path):
    torch = peers.torch()
    peer = theirs(kind)
    model, params = imported(peer, tmp_path / "weights")
    out = peer(torch.tensor(TEXT).long()).logits
    (out * torch.tensor(WEIGHT)).sum().backward()
    expected = small.our_gradients(peer, tmp_path / "gradients")

    def objective(params):
        logits = model.logits(params, model.apply(params, TEXT)[0])
        return (logits * WEIGHT).sum(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    assert_close(logits, out.detach(), "logits")
    assert_gradients(gradient, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
    peer = theirs(kind)
    model, params = imported(peer, tmp_path)
    written = interop.table.export(names.LLAMA, {k: np.asarray(v) for k, v in tree.flatten(params).items()})
    state = {k: v.numpy() for k, v in peer.state_dict().items() if not (model.tied and k == "lm_head.weight")}
    assert written.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    again = configs.build(language.model(language.describe(model), "config.json"))
    same = {"scan", "remat", "dtype", "size"}
    plain = lambda m: {k: v for k, v in dataclasses.asdict(m).items() if k not in same | {"head_dim"}}
    assert plain(again) == plain(model) and again.dim_of_head == model.dim_of_head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
        ({"model_type": "mistral"}, "sliding_window=4096"),
    ],
)
def test_what_is_not_supported(change, message):
    config = {"model_type": "llama", **SIZES, **change}
    with pytest.raises(UserError, match=message):
        configs.build(language.model(config, "config.json"))
