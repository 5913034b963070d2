from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.data import tokenizers
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.text import Text, caption_ids
from vlm_jax.errors import UserError

EOS, PAD, BOS = tokenizers.Bytes.eos_id, tokenizers.Bytes.pad_id, tokenizers.Bytes.bos_id


def ids(text: str) -> list[int]:
    return tokenizers.Bytes().encode(text)


@pytest.mark.parametrize(
    "canonicalise, text, expected",
    [
        ("siglip", "A photo of a Cat.", "a photo of a cat"),
        ("siglip", "hot_dog,  (don't)\tstop!\n", "hot dog dont stop"),
        ("siglip", "ÜBER «naïve»", "über «naïve»"),
        ("siglip", "...", ""),
        ("lower", " A photo_of a  Cat. ", "a photo_of a cat."),
        ("none", " A  Cat.\n", " A  Cat.\n"),
    ],
)
def test_canonical(canonicalise, text, expected):
    assert Text(canonicalise=canonicalise).canonical(text) == expected


@given(st.text())
def test_canonical_text_stays_as_it_is(text):
    for canonicalise in ("siglip", "lower"):
        once = Text(canonicalise=canonicalise).canonical(text)
        # Lower-casing alone is not idempotent in all of Unicode.
        assert Text(canonicalise=canonicalise).canonical(once) == once.lower()


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), ids("abc") + [EOS, EOS, EOS]),
        (dict(pad="pad"), ids("abc") + [EOS, PAD, PAD]),
        (dict(bos=True), [BOS] + ids("abc") + [EOS, EOS]),
        (dict(eos="plain", pad="pad"), ids("abc") + [EOS, PAD, PAD]),
        (dict(eos="none", pad="pad"), ids("abc") + [PAD, PAD, PAD]),
    ],
)
def test_short_rows(options, expected):
    rows = Text(length=6, **options)("ABC")
    assert rows.dtype == np.int32 and rows.tolist() == [expected]


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(), ids("abc") + [EOS]),
        (dict(bos=True), [BOS] + ids("ab") + [EOS]),
        (dict(eos="plain"), ids("abcd")),
        (dict(eos="none", bos=True), [BOS] + ids("abc")),
    ],
)
def test_truncated_rows(options, expected):
    assert Text(length=4, **options)(["abcdefgh"]).tolist() == [expected]


@given(st.lists(st.text(max_size=40), max_size=5), st.integers(2, 20), st.sampled_from(["siglip", "lower", "none"]))
def test_sticky_rows_end_in_eos(texts, length, canonicalise):
    rows = Text(length=length, canonicalise=canonicalise)(texts)
    assert rows.shape == (len(texts), length)
    assert (rows[:, -1] == EOS).all()


@given(st.text(max_size=20))
def test_decode_gives_the_canonical_text(text):
    codec = Text(length=128, bos=True)
    assert codec.decode(codec(text)) == [codec.canonical(text).encode("utf-8", "replace").decode()]


def test_rows_do_not_share_memory():
    codec = Text(length=8)
    first = codec("abc")
    first[:] = 7
    assert codec("abc")[0, 0] == ids("a")[0]


def test_ids_and_sizes():
    assert (Text().vocab_size, Text().eos_id, Text().pad_id, Text(pad="pad").pad_id) == (260, EOS, EOS, PAD)


def test_a_tokenizer_without_the_asked_special_is_refused(tmp_path):
    import sentencepiece

    path = tmp_path / "no_bos.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"] * 9), model_writer=file, vocab_size=10, model_type="word",
            hard_vocab_limit=False, bos_id=-1, pad_id=-1, minloglevel=2,
        )  # fmt: skip
    assert Text(tokenizer=str(path)).vocab_size
    with pytest.raises(UserError, match="no bos_id"):
        Text(tokenizer=str(path), bos=True)("a")
    with pytest.raises(UserError, match="no pad_id"):
        Text(tokenizer=str(path), pad="pad")("a")


def test_wrong_values_are_named_at_once():
    for options, why in (
        (dict(canonicalise="siglib"), "did you mean 'siglip'"),
        (dict(eos="stick"), "did you mean 'sticky'"),
        (dict(pad="none"), "valid choices: eos, pad, zero"),
        (dict(pad_side="lef"), "did you mean 'left'"),
        (dict(length=1), "length=1"),
        (dict(tokenizer="train:many"), "number of pieces"),
    ):
        with pytest.raises(UserError, match=why):
            Text(**options)


def test_building_needs_no_file():
    missing = Text(tokenizer="/nowhere/x.model")
    with pytest.raises(UserError, match=r"/nowhere/x.model.*cannot be read"):
        missing("a")


def test_resolve_trains_on_text_as_it_will_be_encoded(tmp_path):
    captions = lambda limit: ["A Red Circle!", "a red square", "A green_Circle"] * 10
    text = Text(tokenizer="train:50", length=8).resolve(captions, tmp_path)
    row = text("a red circle")[0].tolist()
    assert len(set(row[:3])) == 3 and row[3:] == [text.eos_id] * 5 and text.model.unk_id not in row
    assert text.model.unk_id not in text("green square")


def test_resolve_shapes(tmp_path):
    source = Shapes(size=300)
    text = Text(tokenizer="train:100", length=24).resolve(source.captions, tmp_path)
    rows = text(list(source.captions(200)))
    assert (rows[:, -1] == text.eos_id).all() and (rows != text.model.unk_id).all()
    prompts = text([f"a picture of a {name}" for name in source.class_names])
    assert (prompts != text.model.unk_id).all() and len(np.unique(prompts, axis=0)) == len(source.class_names)


def test_equal_captions_have_equal_ids():
    text = Text(length=16)
    ids = caption_ids(text(["a red circle", "a blue circle", "A red circle.", "a red circles"]))
    assert ids.dtype == np.int32 and (ids >= 0).all()
    assert ids[0] == ids[2] and len(set(ids.tolist())) == 3


def test_caption_ids_are_spread():
    rows = np.zeros((20_000, 12), np.int32)
    rows[:, 3], rows[:, 4] = np.divmod(np.arange(20_000), 150)
    ids = caption_ids(rows)
    assert len(np.unique(ids)) >= 19_999  # 0.09 collisions are expected
    assert abs((ids / 2**31).mean() - 0.5) < 0.02


def test_caption_ids_are_the_same_for_ever():
    assert caption_ids(np.arange(12, dtype=np.int32).reshape(3, 4)).tolist() == PINNED


PINNED = [1629812669, 940636015, 251459360]
