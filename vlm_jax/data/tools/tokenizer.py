"""`tokenizer`: a sentencepiece model trained on a source's captions, as a run will encode them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_jax.data.progress import progress
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import CAPTIONS, SentencePiece, train
from vlm_jax.data.tools.files import write_whole
from vlm_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="FILE", required=True, help="the .model file to write")
    parser.add_argument("--vocab_size", type=int, metavar="N", default=32_000, help="the most pieces")
    parser.add_argument(
        "--captions", type=int, metavar="N", default=CAPTIONS, help=f"captions to train on (default: {CAPTIONS})"
    )
    parser.add_argument(
        "--canonicalise", metavar="HOW", default="siglip", help="as Text.canonicalise: siglip | lower | none"
    )


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    Text(canonicalise=flags.canonicalise)
    if flags.captions < 1:
        raise UserError(f"--captions={flags.captions}: wanted is at least 1.")
    if not Path(flags.output).absolute().parent.is_dir():
        raise UserError(f"--output={flags.output}: the folder {Path(flags.output).parent} does not exist.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Trains and writes the model."""
    model = train(_captions(source, flags.captions, Text(canonicalise=flags.canonicalise)), flags.vocab_size)
    write_whole(Path(flags.output), model)
    yield f"{flags.output}: {SentencePiece(model).vocab_size} pieces"


def _captions(source: Any, limit: int, text: Text) -> Iterator[str]:
    with progress("reading captions", limit) as advance:
        for caption in source.captions(limit):
            yield text.canonical(caption)
            advance()
