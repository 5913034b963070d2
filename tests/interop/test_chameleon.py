"""Chameleon's decoder equals transformers': text loss, logits, gradients, and its weights in and out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.errors import UserError
from vlm_jax.interop import language, names
from vlm_jax.mesh import Layout
from vlm_jax.models.multimodal import TextDecoder
from vlm_jax.tasks.base import Context
from vlm_jax.tasks.language_model import LanguageModeling

from ..parity import peers
from . import peer_models as small
from .peer_models import assert_close, assert_gradients

VOCAB, CODES, FIRST = 50, 8, 10
TEXT = np.random.default_rng(0).integers(3, VOCAB, (3, 9)).astype(np.int32)
IS_CODE = (TEXT >= FIRST) & (TEXT < FIRST + CODES)
SIZES = small.SIZES | {"vocab_size": VOCAB, "max_position_embeddings": 32, "num_key_value_heads": 2}
VQ = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, embed_dim=4, num_embeddings=CODES, resolution=8)


def theirs(swin):
    t = peers.transformers()
    codes = {f"IMGIMG{chr(ord('A') + k)}Z": FIRST + k for k in range(CODES)}
    options = dict(vocabulary_map={"<image>": 9, **codes}, vq_config=VQ | {"latent_channels": 4}, swin_norm=swin)
    config = t.ChameleonConfig(**SIZES, **options, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return small.randomise(t.ChameleonForConditionalGeneration(config))


def imported(peer, folder):
    found = interop.source(small.save(peer, folder))
    return configs.build(found.model), jax.tree.map(jnp.asarray, found.params())


@pytest.mark.parametrize("swin", [False, True], ids=["7B", "34B"])
def test_loss_logits_and_gradients(swin, tmp_path):
    """Of texts among which codes stand, but are not predicted: transformers leaves codes out of its softmax."""
    torch = peers.torch()
    peer = theirs(swin)
    model, params = imported(peer, tmp_path / "weights")
    assert model.qk_norm == "layer_per_head" and model.placement == ("swin" if swin else "pre")
    labels = np.where(IS_CODE, -100, TEXT)
    out = peer(torch.tensor(TEXT).long(), labels=torch.tensor(labels).long())
    out.loss.backward()
    expected = small.our_gradients(peer, tmp_path / "gradients")

    def objective(params):
        logits = model.logits(params, model.apply(params, TEXT)[0])
        masked = logits.at[..., FIRST : FIRST + CODES].set(np.finfo(np.float32).min)
        each = -jnp.take_along_axis(jax.nn.log_softmax(masked[:, :-1]), TEXT[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(IS_CODE[:, 1:], 0, each).sum() / (~IS_CODE[:, 1:]).sum(), logits

    (loss, logits), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    text = np.delete(np.arange(VOCAB), np.s_[FIRST : FIRST + CODES])
    assert_close(logits[..., text], out.logits.detach()[..., text], "logits")
    assert_close(loss, out.loss.detach(), "loss")
    assert_gradients(gradient, expected)


def test_images_are_learnt_where_transformers_has_an_infinite_loss(tmp_path):
    torch = peers.torch()
    peer = theirs(False)
    model, params = imported(peer, tmp_path)
    assert IS_CODE[:, 1:].any()
    with torch.no_grad():
        assert peer(torch.tensor(TEXT).long(), labels=torch.tensor(TEXT).long()).loss > 1e30
    ones = np.ones(TEXT.shape, np.int32)
    batch = {"text": TEXT, "text_segment_ids": ones, "target_mask": ones > 0}
    ctx = Context(jax.random.key(0), jnp.int32(0), 1, Layout().make(jax.devices()[:1]))
    loss, _ = LanguageModeling(TextDecoder(model), 9).loss({"params": {"decoder": params}}, batch, ctx)
    assert 0 < loss < 20


@pytest.mark.parametrize("swin", [False, True], ids=["7B", "34B"])
def test_round_trip(swin, tmp_path):
    t = peers.transformers()
    peer = theirs(swin)
    model, params = imported(peer, tmp_path)
    written = interop.table.export(names.LLAMA, {k: np.asarray(v) for k, v in tree.flatten(params).items()})
    state = {k: v.numpy() for k, v in peer.state_dict().items() if ".vqmodel." not in k}
    assert written.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    config = language.describe(model)
    assert t.ChameleonConfig(**config).swin_norm == swin
    again = configs.build(language.model(config, "config.json"))
    same = {"scan", "remat", "dtype", "size", "head_dim"}
    plain = lambda m: {k: v for k, v in dataclasses.asdict(m).items() if k not in same}
    assert plain(again) == plain(model)


def test_other_norms_than_the_class_has(tmp_path):
    model, _ = imported(theirs(False), tmp_path)
    with pytest.raises(UserError, match="norm_eps=1e-06; they have 1e-05"):
        language.describe(dataclasses.replace(model, norm_eps=1e-6))
    with pytest.raises(UserError, match="rms_norm_eps=1e-06 is not supported"):
        language.model({"model_type": "chameleon", **SIZES, "rms_norm_eps": 1e-6}, "config.json")
    with pytest.raises(UserError, match="placement='swin'; they have 'pre'"):
        language.describe(dataclasses.replace(model, qk_norm=None, placement="swin"))
