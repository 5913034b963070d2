"""Token ids, truncation and padding equal those of transformers and open_clip, on a thousand varied strings."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import random
from pathlib import Path

import pytest

from vlm_jax.data import bpe, canonical
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import resolve_tokenizer

from . import peers

WORDS = """a photo of the cat dog's they're I'll Straße naïve CAFÉ İstanbul ΣΊΣΥΦΟΣ ΟΔΌΣ Ελλάδα Привет мир 東京 日本語
你好 안녕하세요 हिन्दी नमस्ते مرحبا שלום ภาษาไทย résumé e\u0301clair ﬁne ½ ² Ⅷ 12345 3.14 2023-11-05 10,000 #hashtag
@user snake_case don't can't we've she'd IT'S rock'n'roll &amp; &lt;b&gt; &#39;quoted&#39; &amp;amp; &nbsp;
&eacute;t&eacute; schÃ¶n â€œquotesâ€\x9d 😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ ☕ 🇯🇵 ♞ ∑∞ → ©
™ £5 $9.99 50% C++ <tag> [brackets] {braces} ... ?! --
— “curly” \u2018single\u2019 /path/to\\file www.example.com/x?y=1&z=2 x.y@z.org ALLCAPS
camelCase aaaaaaa zzz z\u0335\u0321a\u0334lgo \u200bzero\u200dwidth soft\xadhyphen""".split()
SPACES = [" ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u3000", "\r\n", "\u2003"]


@functools.cache
def strings() -> tuple[str, ...]:
    """Words of many scripts, entities, emoji and odd spaces; random characters; long ones; none at all."""
    rng = random.Random(0)
    found = ["", " ", "...", "a", "!", "\n\t", "A" * 300, "hello " * 200, "😀" * 90, *WORDS]
    while len(found) < 900:
        words = rng.choices(WORDS, k=rng.choice([1, 2, 3, 5, 8, 13, 30, 120]))
        found.append("".join(word + rng.choice(SPACES) for word in words))
    while len(found) < 1000:
        blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x900, 0x980), (0x3040, 0x3100), (0x1F300, 0x1F650)]
        ends = rng.choice(blocks)
        found.append("".join(chr(rng.randrange(*ends)) for _ in range(rng.randint(1, 60))))
    return tuple(found)


def test_the_strings_tell_protocols_apart():
    ways = {name: tuple(map(Text(canonicalise=name).canonical, strings())) for name in canonical.FUNCTIONS}
    assert len(set(strings())) >= 900 and len(strings()) == 1000
    assert len(set(ways.values())) == len(ways)


def compare(text: Text, theirs) -> None:
    """`theirs` gives the rows of all strings."""
    ours, expected = text(list(strings())), theirs(list(strings()))
    different = [i for i, (a, b) in enumerate(zip(ours.tolist(), expected)) if a != list(b)]
    first = "".join(f"\n{strings()[i]!r}\n{ours[i].tolist()}\n{list(expected[i])}" for i in different[:3])
    assert not different, f"{len(different)} of {len(ours)}: {first}"


@functools.cache
def openai_file() -> Path:
    """The merges that OpenAI published, as open_clip brings them along."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("parity tests need it: pip install 'vlm_jax[parity]'")
    return Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory) -> Path:
    """OpenAI's vocabulary in transformers' format."""
    folder = tmp_path_factory.mktemp("clip")
    merges = [line.split() for line in gzip.decompress(openai_file().read_bytes()).decode().split("\n")[1:48895]]
    letters = sorted(bpe.byte_letters())
    names = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    return folder


CLIP = dict(length=77, bos=True, eos="sticky")


@pytest.mark.parametrize("length", [77, 16])
def test_clip_of_open_clip(length):
    tokenizer = peers.torchvision("open_clip.tokenizer").SimpleTokenizer(context_length=length)
    text = Text(**CLIP | {"length": length}, tokenizer=str(openai_file()), canonicalise="clip", pad="zero")
    compare(text, lambda texts: tokenizer(texts).tolist())
    assert (text.vocab_size, text.eos_id, text.pad_id) == (49_408, 49_407, 0)


@pytest.mark.parametrize("kind", ["merges.txt", "vocab.json", "tokenizer.json", "assets"])
def test_clip_of_transformers(clip_files, kind, tmp_path):
    vocab, merges = (clip_files / name for name in ("vocab.json", "merges.txt"))
    pairs = [tuple(line.split()) for line in merges.read_text().split("\n")[1:]]
    theirs = peers.transformers().CLIPTokenizer(vocab=json.loads(vocab.read_text()), merges=pairs)
    path = str(clip_files / kind) if kind in ("merges.txt", "vocab.json") else str(merges)
    if kind == "tokenizer.json":
        theirs.save_pretrained(tmp_path)
        path = str(tmp_path / kind)
    elif kind == "assets":  # what a run keeps: one file
        path = resolve_tokenizer(path, lambda limit: [], tmp_path / "assets")
        assert Path(path).parent == tmp_path / "assets"
        assert resolve_tokenizer(str(merges), lambda limit: [], tmp_path / "assets") == path
    text = Text(**CLIP, tokenizer=path, canonicalise="clip_transformers", pad="eos")
    options = dict(padding="max_length", truncation=True, max_length=77)
    compare(text, lambda texts: theirs(texts, **options)["input_ids"])


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    rng = random.Random(1)
    plain = [word.lower() for word in WORDS]
    return [" ".join(rng.choices(plain, k=9)) for _ in range(1500)]


@pytest.fixture(scope="module")
def sentencepiece_file(sentences, tmp_path_factory) -> Path:
    """Trained as T5's and SigLIP's vocabulary is: unigrams of nmt_nfkc text, no padding of its own."""
    import sentencepiece

    path = tmp_path_factory.mktemp("siglip") / "spiece.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=file, vocab_size=500, character_coverage=0.99,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path


def test_siglip_of_transformers(sentencepiece_file):
    theirs = peers.transformers().SiglipTokenizer(str(sentencepiece_file))
    text = Text(tokenizer=str(sentencepiece_file), canonicalise="siglip_transformers")
    options = dict(padding="max_length", truncation=True, max_length=64)
    compare(text, lambda texts: theirs(texts, **options)["input_ids"])


@pytest.mark.parametrize("clean, ours", [("canonicalize", "siglip_open_clip"), ("lower", "clip")])
def test_cleaning_of_open_clip(clean, ours):
    theirs = peers.torchvision("open_clip.tokenizer").get_clean_fn(clean)
    text = Text(canonicalise=ours)
    assert [text.canonical(string) for string in strings()] == [theirs(string) for string in strings()]


@pytest.mark.parametrize("side", ["right", "left"])
def test_siglip2_of_transformers(sentences, tmp_path, side):
    """Gemma's: BPE with bytes for what it lacks, spaces as pieces, lower case."""
    transformers, tokenizers = peers.transformers(), pytest.importorskip("tokenizers")
    empty = transformers.Siglip2Tokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learnt.normalizer = empty.backend_tokenizer.normalizer
    learnt.train_from_iterator(sentences, trainer)
    model = json.loads(learnt.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    theirs.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    theirs.padding_side = side
    theirs.save_pretrained(tmp_path)
    text = Text(
        tokenizer=str(tmp_path / "tokenizer.json"), canonicalise="siglip2", eos="sticky", pad="pad", pad_side=side
    )
    options = dict(padding="max_length", truncation=True, max_length=64)
    compare(text, lambda texts: theirs(texts, **options)["input_ids"])
    assert (text.eos_id, text.pad_id) == (1, 0)
    assert text.decode(text("a photo of the cat"))[0].strip() == "a photo of the cat"
