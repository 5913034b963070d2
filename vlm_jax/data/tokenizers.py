"""Tokenizers: UTF-8 bytes, which need no file, and sentencepiece models, loaded or trained.

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vlm_jax.errors import UserError

TRAIN_COMMAND = "python -m vlm_jax.data.tokenizers train --output={path} --vocab_size=32000 FILE..."
# A corpus of fewer words than this (class names in templates, procedural captions) is closed: its words are pieces.
CLOSED_CORPUS = 1000
# Byte pieces take 256 entries, which a vocabulary smaller than this has no room for.
BYTE_FALLBACK_FROM = 1000
# A vocabulary is settled long before this many captions are seen, and unigram training takes seconds up to here.
CAPTIONS = 20_000


class Bytes:
    """UTF-8 bytes after four specials: byte `b` is id `b + 4`, for ever."""

    pad_id, eos_id, unk_id, bos_id = 0, 1, 2, 3
    vocab_size = 4 + 256

    def encode(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode("utf-8", "replace")]

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

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids])


@functools.lru_cache(maxsize=8)
def load(spec: str) -> Bytes | SentencePiece:
    """The tokenizer named by `spec`: "bytes", or the path of a sentencepiece `.model`.

    Raises:
      UserError: the file is missing or is not a sentencepiece model, or the spec is "train:N", yet to be resolved.
    """
    if spec == "bytes":
        return Bytes()
    if spec.startswith("train:"):
        raise UserError(f"tokenizer={spec!r} is trained when a run starts; `resolve_tokenizer` gives its file.")
    model = _read(spec)
    try:
        return SentencePiece(model)
    except RuntimeError:
        raise UserError(
            f"tokenizer={spec!r} is not a readable sentencepiece model ({len(model):,} bytes); "
            f"get it again, or train one: {TRAIN_COMMAND.format(path='new.model')}"
        ) from None


def _read(path: str) -> bytes:
    from etils import epath  # also reads gs://

    try:
        return epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"tokenizer={path!r} cannot be read ({error.strerror or type(error).__name__}); "
            f"give the path of a sentencepiece .model, 'bytes', or train one: {TRAIN_COMMAND.format(path=path)}"
        ) from None


def train(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Trains a sentencepiece model of at most `vocab_size` pieces; the same sentences give the same bytes.

    Pieces are unigram's; where the vocabulary holds every word of a small corpus they are its whole words, which
    unigram would split (it takes its candidates from what several words share). Text is taken as it is (no
    normalisation), numbers are split into digits, and from 1000 pieces on what a unigram vocabulary lacks is spelt in
    bytes, so that nothing is unknown. Ids of the specials: pad 0, eos 1, unk 2, bos 3.

    Args:
      sentences: texts of one line each.
      vocab_size: the most pieces, specials included; a small corpus gives fewer.

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
    specials = 4
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


def resolve_tokenizer(spec: str, captions: Callable[[int], Iterable[str]], assets: str | os.PathLike) -> str:
    """Puts the tokenizer of a run into its folder `assets` by its hash, so that the run also works on another machine.

    A run that resumes takes the file it began with, also where the original is gone; `assets/tokenizer.json` says
    which that is.

    Args:
      spec: "bytes", the path of a `.model`, or "train:N": train one of at most N pieces on the training captions.
      captions: `captions(limit)` gives at most `limit` texts, canonicalised as they will be encoded.
      assets: the folder, made if absent.

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
        if not spec.startswith("train:") and epath.Path(spec).exists() and _name(_read(spec)) != began["file"]:
            raise UserError(f"tokenizer={spec!r} has changed since this run began with {kept}; give that one.")
        load(kept)
        return kept
    if spec.startswith("train:"):
        model = train(captions(CAPTIONS), trained_size(spec))
    else:
        load(spec)
        model = _read(spec)
    path = assets / _name(model)
    assets.mkdir(parents=True, exist_ok=True)
    _write(path, model)
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


def _name(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()[:16] + ".model"


def _write(path, content: bytes) -> None:
    """Writes so that a reader sees all of it or nothing; processes that write the same do not disturb each other."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


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
