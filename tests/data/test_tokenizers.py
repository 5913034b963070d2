from __future__ import annotations

import functools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.data import tokenizers
from vlm_jax.data.bpe import ClipBPE
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.errors import UserError

SYLLABLES = [c + v for c in "bdfgklmnprstvw" for v in "aeiou"]


@functools.cache
def open_corpus() -> list[str]:
    """More words than a closed corpus may have."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(4000)]
    return [" ".join(rng.choices(words, k=7)) for _ in range(1000)]


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = tokenizers.Bytes()
    ids = tokenizer.encode(text)
    assert all(4 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode()


def test_byte_ids_never_change():
    assert tokenizers.Bytes().encode("aé") == [101, 199, 173]
    assert tokenizers.Bytes().decode([101, 199, 173, 1, 0]) == "aé"


def test_training_is_deterministic():
    for corpus, size in ((open_corpus(), 1000), (list(Shapes(size=200).captions()), 100)):
        assert tokenizers.train(corpus, size) == tokenizers.train(iter(corpus), size)


def test_specials_have_the_ids_of_t5():
    model = tokenizers.SentencePiece(tokenizers.train(open_corpus(), 500))
    assert (model.pad_id, model.eos_id, model.unk_id, model.bos_id) == (0, 1, 2, 3)


def test_pieces_of_a_closed_corpus_are_its_words():
    model = tokenizers.SentencePiece(tokenizers.train(Shapes(size=500).captions(), 100))
    ids = model.encode("a picture of a small red circle")
    assert len(ids) == 7 and model.unk_id not in ids
    assert model.decode(ids) == "a picture of a small red circle"
    assert model.vocab_size <= 100
    assert model.encode("xylophone") == [model.unk_id]


def test_a_vocabulary_of_a_thousand_spells_what_it_lacks():
    model = tokenizers.SentencePiece(tokenizers.train(open_corpus(), 1000))
    for text in ("日本 😀", open_corpus()[0], "xylophone 42"):
        assert model.unk_id not in model.encode(text)
        assert model.decode(model.encode(text)) == text


def test_special_tokens_that_no_text_gives(tmp_path):
    for sentences, size in ((open_corpus(), 1000), (["a red dog", "two"], 60)):
        path = tmp_path / f"{size}.model"
        path.write_bytes(tokenizers.train(sentences, size, ["<|im_end|>", "\n"]))
        model = tokenizers.load(str(path))
        assert [model.special(name) for name in ("<|im_end|>", "\n", "</s>", "red", "▁")] == [4, 5, 1, None, None]
        assert not {0, 1, 3, 4, 5} & set(model.spell("a red <|im_end|></s>\n dog")) and model.adds_space
    assert tokenizers.train(["a red dog"], 60, ()) == tokenizers.train(["a red dog"], 60)
    assert tokenizers.Bytes().special("</s>") is None and not tokenizers.Bytes().adds_space


def test_what_looks_like_a_special_token_can_be_spelt(tmp_path):
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE({c: i for i, c in enumerate("a</s>"[:4])} | {">": 4}, []))
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "x.json"))
    model = tokenizers.load(str(tmp_path / "x.json"))
    assert model.encode("a</s>") == [0, 5] and model.spell("a</s>") == [0, 1, 2, 3, 4]
    assert model.special("</s>") == model.eos_id == 5 and model.special("a") is None and not model.adds_space
    names = ["<|startoftext|>", "<|endoftext|>", *"<|endoftx", *(f"{letter}</w>" for letter in "a|t>")]
    clip = ClipBPE({name: i for i, name in enumerate(names)}, [])
    assert clip.encode("a<|endoftext|>") == [clip.vocab["a</w>"], 1] and 1 not in clip.spell("a<|endoftext|>")
    assert clip.special("<|endoftext|>") == 1 and clip.special("a</w>") is None


def test_training_errors_are_one_line():
    for corpus, size, why in (
        ([], 100, "no text"),
        (["", " \n"], 100, "no text"),
        (open_corpus(), 8, "smaller than required"),
    ):
        with pytest.raises(UserError, match=why) as error:
            tokenizers.train(corpus, size)
        assert "\n" not in str(error.value) and "src/" not in str(error.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.model.*tokenizers train"):
        tokenizers.load(str(tmp_path / "nowhere.model"))
    with pytest.raises(UserError, match="cannot be read"):
        tokenizers.load(str(tmp_path))
    whole = tokenizers.train(open_corpus(), 500)
    broken = tmp_path / "broken.model"
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken.model.*not a readable sentencepiece model.*tokenizers train"):
            tokenizers.load(str(broken))
    with pytest.raises(UserError, match="trained when a run starts"):
        tokenizers.load("train:100")


@pytest.mark.parametrize("spec", ["train:", "train:x", "train:7", "train:-1", "train:1e3"])
def test_malformed_training_specs(spec, tmp_path):
    with pytest.raises(UserError, match="number of pieces"):
        tokenizers.resolve_tokenizer(spec, Shapes().captions, tmp_path)


def test_resolve_keeps_bytes(tmp_path):
    assert tokenizers.resolve_tokenizer("bytes", Shapes().captions, tmp_path / "assets") == "bytes"


def test_resolve_trains_once(tmp_path):
    path = tokenizers.resolve_tokenizer("train:100", Shapes(size=200).captions, tmp_path / "assets")
    assert path.endswith(".model") and str(tmp_path / "assets") in path

    def never(limit):
        raise AssertionError("a run that resumes does not train again")

    assert tokenizers.resolve_tokenizer("train:100", never, tmp_path / "assets") == path
    again = tokenizers.resolve_tokenizer("train:100", Shapes(size=200).captions, tmp_path / "other")
    assert again.rsplit("/", 1)[1] == path.rsplit("/", 1)[1], "the name is the hash of the content"
    assert not list((tmp_path / "assets").glob("*.part"))


def test_resolve_copies_so_that_the_original_may_go(tmp_path):
    original = tmp_path / "mine.model"
    original.write_bytes(tokenizers.train(open_corpus(), 500))
    kept = tokenizers.resolve_tokenizer(str(original), Shapes().captions, tmp_path / "assets")
    assert tokenizers._read(kept) == original.read_bytes()
    original.unlink()
    (tmp_path / "assets").rename(tmp_path / "moved")
    moved = tokenizers.resolve_tokenizer(str(original), Shapes().captions, tmp_path / "moved")
    assert moved.startswith(str(tmp_path / "moved"))


def test_resolve_refuses_another_file_under_the_same_name(tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(tokenizers.train(open_corpus(), 500))
    tokenizers.resolve_tokenizer(str(path), Shapes().captions, tmp_path / "assets")
    path.write_bytes(tokenizers.train(open_corpus(), 400))
    with pytest.raises(UserError, match="has changed since this run began"):
        tokenizers.resolve_tokenizer(str(path), Shapes().captions, tmp_path / "assets")


def test_command_trains(tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(open_corpus()))
    output = tmp_path / "x.model"
    assert tokenizers.main(["train", f"--output={output}", "--vocab_size=500", str(corpus)]) == 0
    pieces = tokenizers.load(str(output)).vocab_size
    assert capsys.readouterr().out == f"{output}: {pieces} pieces\n"


def test_command_errors_are_one_line_and_code_2(tmp_path, capfd):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(open_corpus()))
    for arguments, why in (
        ([f"--output={tmp_path}/x.model", str(tmp_path / "missing.txt")], "missing.txt cannot be read"),
        ([f"--output={tmp_path}/no/x.model", str(corpus)], "does not exist"),
        ([f"--output={tmp_path}/x.model", "--vocab_size=9", str(corpus)], "vocab_size=9"),
    ):
        assert tokenizers.main(["train", *arguments]) == 2
        captured = capfd.readouterr()
        assert why in captured.err and captured.err.count("\n") == 1 and not captured.out
        assert not (tmp_path / "x.model").exists()
