from __future__ import annotations

import gzip
import json
import sys

import pytest

from vlm_jax.data import bpe, tokenizers
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

MERGES = [("a", "a"), ("c", "a"), ("ca", "t</w>"), ("aa", "a</w>")]
LETTERS = [*bpe.byte_letters(), *(letter + "</w>" for letter in bpe.byte_letters())]
VOCAB = {name: i for i, name in enumerate([*LETTERS, *map("".join, MERGES), "<|startoftext|>", "<|endoftext|>"])}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, MERGES)))
    return tmp_path


@pytest.mark.parametrize(
    "text, words",
    [
        ("it's 2023: no-one's", ["it", "'s", "2", "0", "2", "3", ":", "no", "-", "one", "'s"]),
        ("...'s", ["...'", "s"]),
        ("été ½ \u3000東京", ["été", "½", "東京"]),
        ("<end>!<end>a", ["<end>", "!<", "end", ">", "a"]),
        (" \n", []),
    ],
)
def test_words(text, words):
    assert list(bpe.split(text, ("<end>",))) == words


@pytest.mark.parametrize("text, parts", [("cat", ["cat</w>"]), ("aaaa", ["aa", "aa</w>"]), ("aaa", ["aaa</w>"])])
def test_merges_go_by_rank_and_from_the_left(text, parts):
    merges = [*MERGES, ("a", "a</w>")]
    names = [*VOCAB, "aa</w>"]
    tokenizer = bpe.ClipBPE({name: i for i, name in enumerate(names)}, merges)
    found = [names[i] for i in tokenizer.encode(text)]
    assert found == parts


def test_it_decodes_what_it_encodes(folder):
    tokenizer = tokenizers.load(str(folder / "merges.txt"))
    assert tokenizer.decode(tokenizer.encode("cat 東京 été")) == "cat 東京 été"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (len(VOCAB) - 2, len(VOCAB) - 1, len(VOCAB))


def test_what_a_vocabulary_lacks_is_the_end_token():
    tokenizer = bpe.ClipBPE({"a</w>": 0, "<|endoftext|>": 1}, [])
    assert tokenizer.encode("a b") == [0, 1]


def test_a_run_keeps_both_files_as_one(folder):
    kept = tokenizers.resolve_tokenizer(str(folder / "vocab.json"), lambda limit: [], folder / "assets")
    assert kept.endswith(".json") and tokenizers.load(kept).encode("cat") == [VOCAB["cat</w>"]]
    (folder / "merges.txt").write_text("a a")
    with pytest.raises(UserError, match="has changed since this run began"):
        tokenizers.resolve_tokenizer(str(folder / "vocab.json"), lambda limit: [], folder / "assets")


def test_damaged_files_are_one_line(folder):
    whole = gzip.compress(b"#version\na b\nab c")
    for name, content, why in (
        ("tokenizer.json", b"{", "not a readable tokenizer.json"),
        ("tokenizer.json", b"[1]", "not a readable tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "not a readable tokenizer.json"),
        ("merges.txt", b"a b c\nd", "not a readable tokenizer.json"),
        ("x.txt.gz", b"a b", "not a readable file of merges"),
        ("x.txt.gz", whole[:-4], "not a readable file of merges"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=why) as error:
            tokenizers.load(str(folder / name))
        assert "\n" not in str(error.value)
    (folder / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"vocab.json.*cannot be read"):
        tokenizers.load(str(folder / "merges.txt"))


@pytest.mark.parametrize("package", ["ftfy", "tokenizers"])
def test_packages_that_are_not_there_are_named(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "BPE"}}')
    options = {"ftfy": dict(canonicalise="clip"), "tokenizers": dict(tokenizer=str(path))}
    with pytest.raises(UserError, match=r"pip install 'vlm_jax\[text\]'"):
        Text(**options[package])("a")


def test_padding_on_the_left_and_with_zeros(folder):
    options = dict(tokenizer=str(folder / "merges.txt"), length=6, bos=True, canonicalise="none")
    cat, bos, eos = VOCAB["cat</w>"], VOCAB["<|startoftext|>"], VOCAB["<|endoftext|>"]
    assert Text(**options, pad="zero")("cat").tolist() == [[bos, cat, eos, 0, 0, 0]]
    left = Text(**options, pad="zero", pad_side="left")
    assert left("cat").tolist() == [[0, 0, 0, bos, cat, eos]]
    assert left.decode(left(["cat cat", "cat " * 9])) == ["cat cat", "cat cat cat cat"]
