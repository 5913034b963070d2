"""Our tokenizers as the `tokenizer.json` of the package `tokenizers`, which transformers and open_clip load.

Canonicalisation, begin and end tokens are in it, so that the other library's tokenizer gives the rows of `Text`;
but of a text that spells out a special token, which there becomes that token.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from vlm_jax.data import bpe
from vlm_jax.data.bpe import ClipBPE
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import Bytes, SentencePiece
from vlm_jax.errors import UserError

NAMES = {"pad_id": "<pad>", "eos_id": "</s>", "unk_id": "<unk>", "bos_id": "<s>"}
PUNCTUATION = r"[!-/:-@\[-`{-~]"  # ASCII's
UNIGRAM, BPE, WORD = 1, 2, 3  # sentencepiece's numbers of its kinds of models


@dataclasses.dataclass(frozen=True)
class Written:
    """Files of a tokenizer, and what they cannot say."""

    files: dict[str, bytes]
    notes: tuple[str, ...] = ()


def write(text: Text) -> Written:
    """`tokenizer.json` and `tokenizer_config.json`; of a tokenizer that has no equal, its own file.

    Raises:
      UserError: the package `tokenizers` is missing.
    """
    try:
        import tokenizers
    except ImportError:
        raise UserError("writing a tokenizer.json needs the package tokenizers: pip install 'vlm_jax[hf]'") from None

    notes = []
    model = text.model
    if isinstance(model, Bytes):
        tokenizer, special = _bytes(model), {field: NAMES[field] for field in NAMES}
    elif isinstance(model, SentencePiece):
        content = Path(text.tokenizer).read_bytes()
        tokenizer = _sentencepiece(content)
        special = {field: _piece(content, getattr(model, field)) for field in NAMES}
        if _proto(content).trainer_spec.model_type == WORD:
            notes.append("unknown words in a row are one token in sentencepiece, and one each in tokenizer.json")
        if tokenizer is None:
            note = "the tokenizer is a sentencepiece BPE model, which is copied as it is: spiece.model"
            return Written({"spiece.model": content}, (note,))
    else:
        clip = isinstance(model, ClipBPE)
        tokenizer = _clip(model) if clip else tokenizers.Tokenizer.from_file(text.tokenizer)
        vocab = {i: token for token, i in tokenizer.get_vocab().items()}
        special = {field: vocab.get(getattr(model, field)) for field in NAMES}
    steps = _canonical(text.canonicalise)
    if steps is None:
        notes.append(f"canonicalise={text.canonicalise!r} mends broken encodings (ftfy), tokenizer.json does not")
        steps = _canonical({"siglip_open_clip": "siglip", "clip": "lower"}[text.canonicalise])
    normalizers = tokenizers.normalizers
    if steps:
        before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([*steps, *before])
    if text.eos == "plain":
        notes.append("eos='plain' lets truncation cut the end token off; here it stays")
    _surround(tokenizer, text, special)
    zero = {i: token for token, i in tokenizer.get_vocab().items()}.get(0)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.length,
        "padding_side": text.pad_side,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids"],
        "pad_token": {"eos": special["eos_id"], "pad": special["pad_id"], "zero": zero}[text.pad],
        **{f"{kind}_token": special[f"{kind}_id"] for kind in ("eos", "bos", "unk") if special[f"{kind}_id"]},
    }
    files = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": _json(config)}
    return Written(files, tuple(notes))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _bytes(model: Bytes):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {name: getattr(model, field) for field, name in NAMES.items()}
    vocab |= {letter: byte + len(NAMES) for byte, letter in enumerate(bpe.byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# Words, numbers digit by digit, and runs of other signs; and what stands for the begin and end of a text.
CLIP_WORDS = r"<\|\w+\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _clip(model: ClipBPE):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    end = next(token for token, index in model.vocab.items() if index == model.eos_id)
    options = {"unk_token": end, "continuing_subword_prefix": "", "end_of_word_suffix": bpe.END, "fuse_unk": False}
    tokenizer = Tokenizer(models.BPE(vocab=dict(model.vocab), merges=list(model.ranks), **options))
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _proto(content: bytes):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(content)


def _piece(content: bytes, index: int | None) -> str | None:
    return None if index is None else _proto(content).pieces[index].piece


def _sentencepiece(content: bytes):
    """A unigram or word model; None for another."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    proto = _proto(content)
    kind, rules = proto.trainer_spec.model_type, proto.normalizer_spec
    unk = next(i for i, piece in enumerate(proto.pieces) if piece.type == 2)
    if kind == UNIGRAM:
        vocab = [(piece.piece, piece.score) for piece in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(vocab, unk_id=unk, byte_fallback=proto.trainer_spec.byte_fallback))
    elif kind == WORD:
        vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=proto.pieces[unk].piece))
    else:
        return None
    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    prepend = "always" if rules.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=kind == WORD)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend)])
    return tokenizer


def _canonical(name: str) -> list | None:
    """Steps of `tokenizers` that do what `vlm_jax.data.canonical` does by this name; None where there are none."""
    from tokenizers import Regex, normalizers

    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    lower, bare = normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), "")
    known = {
        "none": [],
        "lower": [lower, *spaces],
        "siglip": [normalizers.Replace("_", " "), bare, lower, *spaces],
        "siglip_transformers": [lower, bare, *spaces],
        "siglip2": [lower],
        "clip_transformers": [normalizers.NFC(), *spaces, lower],
    }
    return known.get(name)


def _surround(tokenizer, text: Text, special: dict[str, str | None]) -> None:
    """Declares the special tokens, and puts begin and end tokens around a text."""
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special.values() if name])
    before = [special["bos_id"]] if text.bos else []
    after = [] if text.eos == "none" else [special["eos_id"]]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [(name, tokenizer.token_to_id(name)) for name in before + after]
    single = " ".join([*before, "$A", *after])
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
