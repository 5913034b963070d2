"""Text to rows of token ids, a pure function of the text and the config."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from vlm_jax.data import canonical, tokenizers
from vlm_jax.data.tokenizers import resolve_tokenizer, trained_size
from vlm_jax.errors import UserError, closest

_CHOICES = {
    "canonicalise": tuple(canonical.FUNCTIONS),
    "eos": ("sticky", "plain", "none"),
    "pad": ("eos", "pad", "zero"),
    "pad_side": ("right", "left"),
}


@dataclasses.dataclass(frozen=True)
class Text:
    """Canonicalises, tokenizes, truncates and pads texts; the defaults are SigLIP's (Zhai et al. 2023, section 4).

    Attributes:
      tokenizer: "bytes", the path of a file (see `tokenizers.load`), or "train:N", which `resolve` turns into a path.
      length: tokens in a row.
      canonicalise: "siglip" lower-cases, makes underscores spaces, drops ASCII punctuation and collapses whitespace;
        "lower" lower-cases and collapses whitespace; "none" takes the text as it is. As published weights have it:
        "siglip_transformers", "siglip_open_clip", "siglip2", "clip", "clip_transformers"; see `vlm_jax.data.canonical`.
      bos: begin with the tokenizer's begin token.
      eos: "sticky" ends every row's text with the end token, also where the text is cut to make room for it; "plain"
        lets truncation cut the end token off; "none" adds none.
      pad: what fills the rest of a row: "eos", the end token (SigLIP; the last token of a sticky row is always it),
        "pad", the padding token; or "zero", the id 0 (OpenAI's CLIP, open_clip).
      pad_side: where padding is; "left" is for weights that were trained so.
    """

    tokenizer: str = "bytes"
    length: int = 64
    canonicalise: str = "siglip"
    bos: bool = False
    eos: str = "sticky"
    pad: str = "eos"
    pad_side: str = "right"

    def __post_init__(self):
        self.validate()

    def validate(self):
        if self.length < 1 + self.bos + (self.eos == "sticky"):
            raise UserError(f"length={self.length} leaves no room for a token between the begin and end tokens.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: {closest(str(getattr(self, name)), choices)}")
        if self.tokenizer.startswith("train:"):
            trained_size(self.tokenizer)

    def resolve(
        self, captions: Callable[[int], Iterable[str]], assets: str | os.PathLike, control: Sequence[str] = ()
    ) -> Text:
        """This text with the file of its tokenizer in `assets`.

        It is trained on `captions(limit)` if it is "train:N", and then has the special tokens that `control` names.
        """
        canonical = lambda limit: map(self.canonical, captions(limit))
        return dataclasses.replace(self, tokenizer=resolve_tokenizer(self.tokenizer, canonical, assets, control))

    @property
    def model(self) -> tokenizers.Tokenizer:
        """The tokenizer, loaded at first use.

        Raises:
          UserError: its file is missing or unreadable, or it has not the special tokens that the config asks for.
        """
        model = tokenizers.load(self.tokenizer)
        wanted = {"bos_id": self.bos, "eos_id": self.eos != "none" or self.pad == "eos", "pad_id": self.pad == "pad"}
        for special, is_wanted in wanted.items():
            if is_wanted and getattr(model, special) is None:
                raise UserError(f"tokenizer={self.tokenizer!r} has no {special}, which bos, eos or pad asks for.")
        return model

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def bos_id(self) -> int | None:
        return self.model.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.model.eos_id

    @property
    def pad_id(self) -> int:
        """The id that fills rows."""
        return 0 if self.pad == "zero" else self.model.eos_id if self.pad == "eos" else self.model.pad_id

    def canonical(self, text: str) -> str:
        """The text as it is tokenized."""
        return canonical.FUNCTIONS[self.canonicalise](text)

    def __call__(self, texts: str | Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """Rows of token ids; a string is one row."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.empty((len(texts), self.length), np.int32)
        for row, text in zip(rows, texts):
            row[:] = _row(self, text)
        return rows

    def decode(self, rows: Int32[np.ndarray, "n length"]) -> list[str]:
        """The texts of rows, up to the first end token or padding."""
        model = self.model
        stops = {self.eos_id, self.pad_id}
        texts = []
        for row in np.asarray(rows).tolist():
            if self.pad_side == "left":
                row = list(itertools.dropwhile(lambda token: token == self.pad_id, row))
            row = row[1:] if self.bos else row
            end = next((i for i, token in enumerate(row) if token in stops), len(row))
            texts.append(model.decode(row[:end]))
        return texts


@functools.lru_cache(maxsize=16_384)
def _row(text: Text, string: str) -> Int32[np.ndarray, "length"]:
    """One row; kept, since class names, prompts and procedural captions come again and again."""
    model = text.model
    tokens = model.encode(text.canonical(string))
    room = text.length - text.bos
    if text.eos == "sticky":
        tokens = tokens[: room - 1] + [model.eos_id]
    elif text.eos == "plain":
        tokens = (tokens + [model.eos_id])[:room]
    else:
        tokens = tokens[:room]
    if text.bos:
        tokens = [model.bos_id] + tokens
    row = np.full(text.length, text.pad_id, np.int32)
    row[slice(len(tokens)) if text.pad_side == "right" else slice(text.length - len(tokens), None)] = tokens
    return row


def caption_ids(rows: Int32[np.ndarray, "n length"]) -> Int32[np.ndarray, "n"]:
    """31-bit hashes of token rows, the same in every process and run, so that equal captions are known as such.

    Two different rows share an id with probability 2^-31 (multiply-shift over vectors, Dietzfelbinger 1996).
    """
    rows = np.asarray(rows).astype(np.uint64)
    multipliers = _multipliers(rows.shape[1] + 1)
    return ((rows @ multipliers[1:] + multipliers[0]) >> np.uint64(33)).astype(np.int32)


@functools.lru_cache(maxsize=16)
def _multipliers(count: int) -> np.ndarray:
    return np.random.Philox(key=0).random_raw(count)
