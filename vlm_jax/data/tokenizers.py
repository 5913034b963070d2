"""Tokenizers: UTF-8 bytes, which need no file; sentencepiece models, loaded or trained; and those of published weights.

Train one:  python -m vlm_jax.data.tokenizers train --output=x.model --vocab_size=32000 FILE...
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vlm_jax.data import bpe
from vlm_jax.data.placing import placed
from vlm_jax.errors import UserError

TRAIN_COMMAND = "python -m vlm_jax.data.tokenizers train --output={path} --vocab_size=32000 FILE..."
# A corpus of fewer words than this (class names in templates, procedural captions) is closed: its words are pieces.
CLOSED_CORPUS = 1000
# Byte pieces take 256 entries, which a vocabulary smaller than this has no room for.
BYTE_FALLBACK_FROM = 1000
# A vocabulary is settled long before this many captions are seen, and unigram training takes seconds up to here.
CAPTIONS = 20_000
CLIP_FILES = ("vocab.json", "merges.txt")
SPACE = "▁"  # in sentencepiece's pieces


class Bytes:
    """UTF-8 bytes after four specials: byte `b` is id `b + 4`, for ever.

    All tokenizers have `encode(text)` and `decode(ids)`; `spell(text)`, which is `encode`, but that nothing in the text
    becomes a special token; `special(name)`, the id of a special token such as "<|im_end|>", or None; and `adds_space`,
    whether a text is encoded as if a space stood before it.
    """

    pad_id, eos_id, unk_id, bos_id = 0, 1, 2, 3
    vocab_size = 4 + 256
    adds_space = False

    def encode(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode("utf-8", "replace")]

    spell = encode

    def special(self, name: str) -> None:
        return None

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - 4 for i in ids if i >= 4).decode("utf-8", "replace")


class SentencePiece:
    """A sentencepiece `.model`. The id of a special that it lacks is None."""

    def __init__(self, model: bytes):
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)  # the constructor takes an empty file for no file
        special = lambda piece_id: None if piece_id < 0 else piece_id
        self.pad_id = special(self._processor.pad_id())
        self.eos_id = special(self._processor.eos_id())
        self.unk_id = special(self._processor.unk_id())
        self.bos_id = special(self._processor.bos_id())
        self.vocab_size = self._processor.vocab_size()
        first = self._processor.encode("a", out_type=str)[:1]
        self.adds_space = bool(first) and first[0].startswith(SPACE)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    spell = encode  # control pieces are never found in texts

    def special(self, name: str) -> int | None:
        found = self._processor.piece_to_id(name)
        return found if self._processor.id_to_piece(found) == name and self._processor.is_control(found) else None

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


class HuggingFace:
    """A `tokenizer.json` of any kind, by the package `tokenizers`; the id of a special that it lacks is None."""

    def __init__(self, content: bytes):
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                "a tokenizer.json needs the package tokenizers, which is not installed: pip install 'vlm_jax[text]'."
            ) from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
            self._tokenizer.encode("\U0010fffd")  # what no vocabulary has must be encoded too
        except Exception as error:  # of a bare class of its own
            raise ValueError(str(error)) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._specials = special = {token.content: i for i, token in added if token.special}
        find = lambda *names: next((special[name] for name in names if name in special), None)
        self.pad_id = find("<pad>", "[PAD]")
        self.eos_id = find("<eos>", "</s>", "[SEP]", "<|endoftext|>")
        self.unk_id = find("<unk>", "[UNK]")
        self.bos_id = find("<bos>", "<s>", "[CLS]", "<|startoftext|>")
        self.vocab_size = self._tokenizer.get_vocab_size()
        self._speller = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        self._speller.encode_special_tokens = True
        first = self._speller.encode("a", add_special_tokens=False).tokens[:1]
        self.adds_space = bool(first) and first[0].startswith((SPACE, "Ġ"))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def spell(self, text: str) -> list[int]:
        return self._speller.encode(text, add_special_tokens=False).ids

    def special(self, name: str) -> int | None:
        return self._specials.get(name)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids])


Tokenizer = Bytes | SentencePiece | bpe.ClipBPE | HuggingFace


@functools.lru_cache(maxsize=8)
def load(spec: str) -> Tokenizer:
    """The tokenizer named by `spec`: "bytes", or the path of its file.

    The file is a sentencepiece `.model`; a `tokenizer.json` (by the package `tokenizers`, unless it is CLIP's); a
    `vocab.json` or `merges.txt`, with the other one beside it; or OpenAI's `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: the file is missing or of no such kind, or the spec is "train:N", yet to be resolved.
    """
    if spec == "bytes":
        return Bytes()
    if spec.startswith("train:"):
        raise UserError(f"tokenizer={spec!r} is trained when a run starts; `resolve_tokenizer` gives its file.")
    content, suffix = _content(spec)
    try:
        if suffix == ".json":
            return bpe.from_json(content) if bpe.is_clip(content) else HuggingFace(content)
        return bpe.from_openai(content) if suffix == ".txt.gz" else SentencePiece(content)
    except (RuntimeError, ValueError):
        raise _unreadable(spec, len(content), suffix) from None


def _unreadable(spec: str, size: int, suffix: str) -> UserError:
    kind = {".json": "tokenizer.json, or vocab.json with merges.txt", ".txt.gz": "file of merges"}
    return UserError(
        f"tokenizer={spec!r} is not a readable {kind.get(suffix, 'sentencepiece model')} ({size:,} bytes); "
        f"get it again, or train one: {TRAIN_COMMAND.format(path='new.model')}"
    )


def _content(spec: str) -> tuple[bytes, str]:
    """What says all about a tokenizer, as one file, and the suffix of its kind."""
    folder, _, name = spec.rpartition("/")
    if name not in CLIP_FILES:
        return _read(spec), next((suffix for suffix in (".json", ".txt.gz") if spec.endswith(suffix)), ".model")
    vocab, merges = (_read(f"{folder}/{name}" if folder else name) for name in CLIP_FILES)
    try:
        return bpe.to_json(vocab, merges), ".json"
    except ValueError:
        raise _unreadable(spec, len(vocab), ".json") from None


def _read(path: str) -> bytes:
    from etils import epath  # also reads gs://

    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"tokenizer={path!r} cannot be read ({error.strerror or type(error).__name__}); "
            f"give the path of a sentencepiece .model, 'bytes', or train one: {TRAIN_COMMAND.format(path=path)}"
        ) from None


def train(sentences: Iterable[str], vocab_size: int, control: Sequence[str] = ()) -> bytes:
    """Trains a sentencepiece model of at most `vocab_size` pieces; the same sentences give the same bytes.

    Pieces are unigram's; where the vocabulary holds every word of a small corpus they are its whole words, which
    unigram would split (it takes its candidates from what several words share). Text is taken as it is (no
    normalisation), numbers are split into digits, and from 1000 pieces on what a unigram vocabulary lacks is spelt in
    bytes, so that nothing is unknown. Ids of the specials: pad 0, eos 1, unk 2, bos 3.

    Args:
      sentences: texts of one line each.
      vocab_size: the most pieces, specials included; a small corpus gives fewer.
      control: names of more specials, which no text gives; their ids are 4 and following.

    Raises:
      UserError: there is no text, or `vocab_size` is too small to hold the characters of the corpus.
    """
    import sentencepiece

    lines = (line for line in (" ".join(s.split("\n")).strip() for s in sentences) if line)
    words: set[str] = set()
    head = []
    for line in lines:
        head.append(line)
        words.update(line.split())
        if len(words) >= CLOSED_CORPUS:
            break
    if not head:
        raise UserError("there is no text to train a tokenizer on; give captions, or use tokenizer='bytes'.")
    specials = 4 + len(control)
    whole_words = len(words) < CLOSED_CORPUS and len(words) + specials <= vocab_size
    spell = vocab_size >= BYTE_FALLBACK_FROM and not whole_words
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain(head, lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="word" if whole_words else "unigram",
            byte_fallback=spell,
            character_coverage=0.9995 if spell else 1.0,
            split_digits=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            control_symbols=list(control),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            hard_vocab_limit=False,
            num_threads=1,  # more threads give another vocabulary
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]
        raise UserError(f"vocab_size={vocab_size} does not suit this corpus; sentencepiece says: {reason}") from None
    return model.getvalue()


def resolve_tokenizer(
    spec: str,
    captions: Callable[[int], Iterable[str]],
    assets: str | os.PathLike,
    control: Sequence[str] = (),
) -> str:
    """Puts the tokenizer of a run into its folder `assets` by its hash, so that the run also works on another machine.

    A run that resumes takes the file it began with, also where the original is gone; `assets/tokenizer.json` says
    which that is.

    Args:
      spec: "bytes", a path (see `load`), or "train:N": train one of at most N pieces on the training captions.
      captions: `captions(limit)` gives at most `limit` texts, canonicalised as they will be encoded.
      assets: the folder, made if absent.
      control: names of special tokens that one which is trained has besides its own.

    Returns:
      "bytes", or the path of the file in `assets`.

    Raises:
      UserError: the spec is malformed, or the file is unreadable or not the one that the run began with.
    """
    from etils import epath

    if spec == "bytes":
        return spec
    assets = epath.Path(assets)
    record = assets / "tokenizer.json"
    began = json.loads(record.read_text()) if record.exists() else None
    if began and began["spec"] == spec and (assets / began["file"]).exists():
        kept = str(assets / began["file"])
        if not spec.startswith("train:") and epath.Path(spec).exists() and _name(*_content(spec)) != began["file"]:
            raise UserError(f"tokenizer={spec!r} has changed since this run began with {kept}; give that one.")
        load(kept)
        return kept
    if spec.startswith("train:"):
        content, suffix = train(captions(CAPTIONS), trained_size(spec), control), ".model"
    else:
        load(spec)
        content, suffix = _content(spec)
    path = assets / _name(content, suffix)
    assets.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    _write(record, json.dumps({"spec": spec, "file": path.name}).encode())
    return str(path)


def trained_size(spec: str) -> int:
    """N of "train:N".

    Raises:
      UserError: N is not a number of pieces.
    """
    number = spec.removeprefix("train:")
    if not number.isdecimal() or int(number) < 8:
        raise UserError(f"tokenizer={spec!r}: train:N needs a number of pieces, such as train:1000.")
    return int(number)


def _name(content: bytes, suffix: str) -> str:
    return hashlib.sha256(content).hexdigest()[:16] + suffix


def _write(path, content: bytes) -> None:
    """Writes so that a reader sees all of it or nothing; processes that write the same do not disturb each other."""
    if "://" in str(path):  # objects of buckets are there when they are whole
        path.write_bytes(content)
        return
    with placed(path) as file:
        file.write(content)


def _lines(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        try:
            with Path(file).open(encoding="utf-8", errors="replace") as opened:
                yield from opened
        except OSError as error:
            raise UserError(
                f"{file} cannot be read ({error.strerror}); give text files, one sentence a line."
            ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_jax.data.tokenizers", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a sentencepiece model on text files, one sentence a line")
    command.add_argument("--output", required=True, help="the .model file to write")
    command.add_argument("--vocab_size", type=int, default=32_000)
    command.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        output = Path(args.output)
        if not output.parent.is_dir():
            raise UserError(f"--output={args.output}: the folder {output.parent} does not exist.")
        model = train(_lines(args.files), args.vocab_size)
        _write(output, model)
        print(f"{output}: {SentencePiece(model).vocab_size} pieces")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
