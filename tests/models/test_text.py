import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.models.text import TextTransformer

EOS, PAD = 9, 0
TINY = TextTransformer(vocab_size=10, length=6, width=16, depth=2, num_heads=2, dtype="float32", eos_id=EOS, pad_id=PAD)
TEXT = jnp.array([[1, 2, EOS, PAD, PAD, PAD], [1, 2, 3, 4, 5, EOS]])


@pytest.fixture
def apply(parameters):
    def run(model, text=TEXT, **options):
        return jax.jit(lambda params, text: model.apply(params, text, **options))(parameters(model), text)

    return run


@pytest.mark.parametrize(
    ("pool", "reduce"),
    [
        ("last", lambda tokens: tokens[:, -1]),
        ("eos", lambda tokens: jnp.stack([tokens[0, 2], tokens[1, 5]])),
        ("mean", lambda tokens: jnp.stack([tokens[0, :3].mean(axis=0), tokens[1].mean(axis=0)])),
    ],
)
def test_pools(apply, pool, reduce):
    out, aux = apply(dataclasses.replace(TINY, pool=pool), taps=("ln_post",))
    np.testing.assert_allclose(out, reduce(aux["taps"]["ln_post"]), atol=1e-6)


def test_map_pool_and_head(apply):
    model = dataclasses.replace(TINY, pool="map", out_dim=4)
    assert apply(model)[0].shape == (2, 4) and model.dim == 4


@pytest.mark.parametrize("pool", ["eos", "mean", "map"])
def test_masked_padding_changes_nothing(apply, pool):
    model = dataclasses.replace(TINY, pool=pool, mask_padding=True)
    np.testing.assert_allclose(apply(model)[0][:1], apply(model, TEXT[:1, :3])[0], atol=1e-5)


def test_eos_pooling_where_padding_is_the_end_token(apply):
    padded = jnp.where(TEXT == PAD, EOS, TEXT)
    for options in ({}, {"mask_padding": True}):
        model = dataclasses.replace(TINY, pool="eos", causal=True, pad_id=EOS, **options)
        np.testing.assert_allclose(apply(model, padded)[0][:1], apply(model, TEXT[:1, :3])[0], atol=1e-5)


def test_causal_text_is_pooled_without_seeing_what_follows(apply):
    model = dataclasses.replace(TINY, pool="eos", causal=True)
    np.testing.assert_allclose(apply(model)[0][:1], apply(model, TEXT[:1, :3])[0], atol=1e-5)
    whole = dataclasses.replace(model, causal=False)
    assert (np.abs(apply(whole)[0][:1] - apply(whole, TEXT[:1, :3])[0]) > 1e-3).any()


def test_taps_and_stacks(apply):
    model = dataclasses.replace(TINY, scan=True)
    assert model.stacks == {"blocks": 2} and TINY.stacks == {}
    taps = apply(model, taps=("embed", "blocks/01"))[1]["taps"]
    assert {name: tap.shape for name, tap in taps.items()} == {"embed": (2, 6, 16), "blocks/01": (2, 6, 16)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "first"}, "unknown pool='first'; valid choices"),
        ({"pool": "eos"}, "pool='eos' needs the tokenizer's eos_id"),
        ({"pool": "mean"}, "pool='mean' needs the tokenizer's pad_id"),
        ({"mask_padding": True}, "mask_padding=True needs the tokenizer's pad_id"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"size": "XL"}, "unknown size='XL'"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError) as error:
        TextTransformer(**fields)
    assert message in str(error.value) and "\n" not in str(error.value)
