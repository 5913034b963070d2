"""CLIP's tokenizer: byte-level BPE with a mark at the end of each word (Radford et al. 2021, section 2.4).

From the files of either publisher: `merges.txt` with `vocab.json` beside it or `tokenizer.json` (transformers), or
`bpe_simple_vocab_16e6.txt.gz` (OpenAI, open_clip). No package is needed.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

END = "</w>"
SPECIALS = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
OPENAI_MERGES = 49_152 - 256 - 2  # the file has more


@functools.cache
def byte_letters() -> tuple[str, ...]:
    """The printable character that stands for each byte in vocabularies (GPT-2's): itself, or one from U+0100 on."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in shown else chr(next(others)) for byte in range(256))


class ClipBPE:
    """Encodes text that is canonical already; see `vlm_jax.data.canonical`.

    Attributes:
      vocab, ranks: ids of parts of words, and pairs of them in the order in which they merge.
      bos_id, eos_id: as the vocabulary has them; what it lacks is encoded as the end token. pad_id: none of its own.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        self.vocab, self.ranks = dict(vocab), {pair: rank for rank, pair in enumerate(merges)}
        begin, end = next((pair for pair in SPECIALS if pair[1] in self.vocab), (None, None))
        self.bos_id, self.eos_id = self.vocab.get(begin), self.vocab.get(end)
        self.pad_id, self.unk_id = None, self.eos_id
        self.vocab_size = max(self.vocab.values()) + 1
        self._specials = tuple(name for name in (begin, end) if name in self.vocab)
        self._words: dict[str, tuple[int, ...]] = {}
        self.adds_space = False

    def encode(self, text: str) -> list[int]:
        return [token for word in split(text, self._specials) for token in self._word(word)]

    def spell(self, text: str) -> list[int]:
        return [token for word in split(text) for token in self._word(word)]

    def special(self, name: str) -> int | None:
        return self.vocab[name] if name in self._specials else None

    def decode(self, ids: Iterable[int]) -> str:
        names = {token: name for name, token in self.vocab.items()}
        letters = {letter: byte for byte, letter in enumerate(byte_letters())}
        text = "".join(names[int(i)] for i in ids).replace(END, " ")
        coded = b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in text)
        return coded.decode("utf-8", "replace").strip()

    def _word(self, word: str) -> tuple[int, ...]:
        if word not in self._words:
            self._words[word] = tuple(self.vocab.get(part, self.unk_id) for part in self._parts(word))
        return self._words[word]

    def _parts(self, word: str) -> list[str]:
        """The word's bytes, joined pair by pair in the order of the merges."""
        if word in self._specials:
            return [word]
        parts = [byte_letters()[byte] for byte in word.encode("utf-8", "replace")]
        parts[-1] += END
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = _join(parts, best)
        return parts


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """With the two parts of the pair as one, wherever they follow each other, from the left."""
    joined, at = [], 0
    while at < len(parts):
        both = tuple(parts[at : at + 2]) == pair
        joined.append("".join(pair) if both else parts[at])
        at += 1 + both
    return joined


def split(text: str, specials: Sequence[str] = ()) -> Iterator[str]:
    """Words, single digits, runs of other signs, and English contractions; spaces go."""
    at = 0
    while at < len(text):
        kind = kind_of(text[at])
        fixed = next((word for word in (*specials, *CONTRACTIONS) if text.startswith(word, at)), None)
        end = at + 1
        if fixed is not None:
            end = at + len(fixed)
        elif kind in ("letter", "sign"):
            while end < len(text) and kind_of(text[end]) == kind:
                end += 1
        if fixed is not None or kind != "space":
            yield text[at:end]
        at = end


@functools.lru_cache(maxsize=4096)
def kind_of(character: str) -> str:
    if character.isspace() and not "\x1c" <= character <= "\x1f":  # Unicode's white space, which is not quite Python's
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "sign")


def from_openai(content: bytes) -> ClipBPE:
    """Of `bpe_simple_vocab_16e6.txt.gz`: a line of version, then merges, of which the first 48,894 count.

    Raises: ValueError where it is none.
    """
    try:
        lines = gzip.decompress(content).decode().split("\n")[1 : OPENAI_MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    merges = pairs(line for line in lines if line)
    # The order of the bytes is that in which their characters are found: printable ones first.
    letters = sorted(byte_letters())
    names = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in merges), *SPECIALS[1]]
    return ClipBPE({name: i for i, name in enumerate(names)}, merges)


def from_json(content: bytes) -> ClipBPE:
    """Of a `tokenizer.json`. Raises: ValueError where it is not one of CLIP's kind."""
    model = json.loads(content)["model"]
    if not is_clip(content):
        raise ValueError("a tokenizer of another kind than CLIP's")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not all(type(token) is int and token >= 0 for token in vocab.values()):
        raise ValueError("its vocabulary is no table of ids")
    if not any(end in vocab for _, end in SPECIALS):
        raise ValueError(f"its vocabulary has no end token, {' or '.join(end for _, end in SPECIALS)}")
    if not isinstance(merges, list):
        raise ValueError("it has no list of merges")
    return ClipBPE(vocab, pairs(merges))


def is_clip(content: bytes) -> bool:
    """Whether a `tokenizer.json` is of this kind. Raises: ValueError where it is no such file."""
    try:
        return json.loads(content)["model"].get("end_of_word_suffix") == END
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it has no model") from error


def to_json(vocab: bytes, merges: bytes) -> bytes:
    """One file, which `from_json` reads, of a `vocab.json` and a `merges.txt`."""
    lines = [line for line in merges.decode().split("\n") if line and not line.startswith("#version")]
    model = {"type": "BPE", "end_of_word_suffix": END, "vocab": json.loads(vocab), "merges": lines}
    return json.dumps({"model": model}).encode()


def pairs(merges: Iterable[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Merges as pairs. Raises: ValueError for a line that is none."""
    found = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for merge in found:
        if not isinstance(merge, (list, tuple)) or len(merge) != 2 or not all(isinstance(part, str) for part in merge):
            raise ValueError(f"{merge!r} is no pair to be merged")
    return [(first, second) for first, second in found]
