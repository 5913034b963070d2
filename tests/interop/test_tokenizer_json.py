"""Tokenizers as they are written for other libraries give the rows that `Text` gives."""

import json
import random

import numpy as np
import pytest

from vlm_jax.data import bpe, tokenizers
from vlm_jax.data.text import Text
from vlm_jax.interop import tokenizer_json

from ..parity import peers

WORDS = "a the red blue green circle square dog cat on in photo of two 7 42 "
WORDS = (
    WORDS + " blue green circle square dog cat on in photo of two 7 42 it's café naïve ÜBER_cool e.g. (x) ß Ω 数 👍"
).split()


def strings(count, seed=0):
    """Words, signs and spaces in any order, and some characters from anywhere."""
    rng = random.Random(seed)
    out = ["", " ", "A"]
    while len(out) < count:
        parts = [rng.choice(WORDS) for _ in range(rng.randrange(9))]
        parts += [chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0x2FF)))) for _ in range(rng.randrange(3))]
        rng.shuffle(parts)
        out.append(rng.choice((" ", "  ", "\t", " ")).join(parts))
    return out


def rows(text, given, folder):
    """By transformers, of what was written."""
    written = tokenizer_json.write(text)
    for name, content in written.files.items():
        (folder / name).write_bytes(content)
    theirs = peers.transformers().AutoTokenizer.from_pretrained(folder)
    found = theirs(given, padding="max_length", truncation=True, max_length=text.length, return_tensors="np")
    return found["input_ids"], written.notes


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """A sentencepiece model that spells in bytes what it does not know."""
    path = tmp_path_factory.mktemp("unigram") / "x.model"
    made = ("".join(random.Random(i).choices("abcdeorst", k=4)) for i in range(3000))
    path.write_bytes(tokenizers.train([f"{word} {' '.join(WORDS)}" for word in made], 1200))
    return str(path)


@pytest.mark.parametrize("canonicalise", ["siglip", "siglip_transformers", "siglip2", "lower", "none"])
def test_bytes(canonicalise, tmp_path):
    text = Text(length=24, canonicalise=canonicalise, bos=True, pad="pad")
    given = strings(1000)
    found, notes = rows(text, given, tmp_path)
    np.testing.assert_array_equal(found, text(given))
    assert notes == ()


@pytest.mark.parametrize("canonicalise", ["siglip", "lower"])
def test_sentencepiece(unigram, canonicalise, tmp_path):
    text = Text(tokenizer=unigram, length=24, canonicalise=canonicalise)
    given = strings(1000)
    found, notes = rows(text, given, tmp_path)
    np.testing.assert_array_equal(found, text(given))
    assert notes == ()


def test_clip(tmp_path):
    letters = list(bpe.byte_letters())
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("t", "h"), ("th", "e</w>")]
    pieces = [*letters, *(letter + bpe.END for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(bpe.to_json(json.dumps(vocab).encode(), "\n".join(lines).encode()))
    text = Text(tokenizer=str(path), length=24, canonicalise="clip_transformers", bos=True)
    given = strings(1000)
    (tmp_path / "out").mkdir()
    found, notes = rows(text, given, tmp_path / "out")
    np.testing.assert_array_equal(found, text(given))
    assert notes == ()


def test_what_cannot_be_said(unigram, tmp_path):
    assert "mends broken encodings" in tokenizer_json.write(Text(canonicalise="clip")).notes[0]
    assert "eos='plain'" in tokenizer_json.write(Text(eos="plain")).notes[0]
