"""Text preprocessing as other libraries' tokenizer files describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop.imported import complete, read_json

# Files of tokenizers, the one that says most first.
FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
# Of open_clip: how `clean` is called in `vlm_jax.data.canonical`; "whitespace" leaves the rest to the tokenizer.
CLEAN = {"canonicalize": "siglip_open_clip", "lower": "clip", "whitespace": None}
# Of transformers: what these classes do to a text before their tokenizer file comes into it.
CANONICAL = {
    "SiglipTokenizer": "siglip_transformers",
    "Siglip2Tokenizer": "siglip2",
    "CLIPTokenizer": "clip_transformers",
}


@dataclasses.dataclass(frozen=True)
class Words:
    """A bound `Text`, and the path of its tokenizer."""

    text: ConfigDict
    tokenizer: str | None


def from_hugging_face(folder: Path, length: int) -> Words:
    """What `tokenizer_config.json` and the tokenizer's own file say, for rows of `length` tokens. Raises UserError."""
    config = read_json(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    siglip = name == "SiglipTokenizer"
    file = tokenizer_file(folder, FILES[::-1] if siglip else FILES)  # which reads its sentencepiece model
    if file is None:
        raise UserError(f"{folder} has no tokenizer: wanted is {', '.join(FILES)}.")
    special = {key: _token(config.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
    if siglip:
        special = {key: special[key] or "</s>" for key in ("eos", "pad")}
    around = {"SiglipTokenizer": (False, True), "CLIPTokenizer": (True, True)}
    before, after = around[name] if name in around else _added(file, config, special)
    node = bind(
        "data.text.Text",
        tokenizer=str(file),
        length=length,
        # SigLIP 2 of one resolution has Gemma's tokenizer, and says no more than this of what it was trained on.
        canonicalise=CANONICAL.get(name, "siglip2" if config.get("do_lower_case") else "none"),
        bos=before,
        eos="sticky" if after else "none",
        pad=_padding(file, special),
        pad_side=config.get("padding_side") or ("left" if name == "Siglip2Tokenizer" else "right"),
    )
    return Words(complete(node), str(file))


def of_language_model(folder: Path, length: int) -> Words:
    """As `from_hugging_face`, for rows of conversations: padded on the right, by a token that nothing depends on, and
    without an end token, which a chat template writes. A folder may lack its tokenizer. Raises UserError."""
    if tokenizer_file(folder) is None:
        words = Words(bind("data.text.Text", length=length, canonicalise="none"), None)
    else:
        words = from_hugging_face(folder, length)
    words.text.update(eos="none", pad="zero", pad_side="right")
    return Words(complete(words.text), words.tokenizer)


def from_open_clip(folder: Path, text: dict, length: int) -> Words:
    """What `text_cfg` says; a tokenizer that is named there lies in the folder, the built-in one has no file."""
    kwargs = text.get("tokenizer_kwargs") or {}
    clean = kwargs.get("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    if clean not in CLEAN:
        raise UserError(f"{folder}: tokenizer_kwargs.clean={clean!r} is not supported; known are {', '.join(CLEAN)}.")
    file = tokenizer_file(folder)
    if text.get("hf_tokenizer_name"):
        words = from_hugging_face(folder, length)
        if CLEAN[clean] is not None:
            words.text.canonicalise = CLEAN[clean]
        return words
    options = {"length": length, "canonicalise": CLEAN[clean] or "none", "bos": True, "eos": "sticky", "pad": "zero"}
    if file is not None:
        options["tokenizer"] = str(file)
    return Words(complete(bind("data.text.Text", **options)), str(file) if file else None)


def tokenizer_file(folder: Path, names: Sequence[str] = FILES) -> Path | None:
    """The file that holds the vocabulary of a folder's tokenizer."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _padding(file: Path, special: dict) -> str:
    """What `Text.pad` is: the end token, the padding token, or another token whose id is 0."""
    if special["pad"] in (None, special["eos"]):
        return "eos"
    if file.name != "tokenizer.json":
        return "pad"
    content = read_json(file)
    ids = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    vocab = content.get("model", {}).get("vocab", {})
    found = ids.get(special["pad"], vocab.get(special["pad"]) if isinstance(vocab, dict) else None)
    return "zero" if found == 0 else "pad"


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _added(file: Path, config: dict, special: dict) -> tuple[bool, bool]:
    """Whether the begin token precedes a text, and the end token follows it."""
    if file.name == "tokenizer.json":
        processor = read_json(file).get("post_processor")
        around = [_around(p, special) for p in _processors(processor)]
        found = next(((b, a) for b, a in around if b or a), None)
        if found is not None:
            return found
    return bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))


def _processors(processor: dict | None) -> Iterator[dict]:
    if processor and processor.get("type") == "Sequence":
        yield from processor["processors"]
    elif processor:
        yield processor


def _around(processor: dict, special: dict) -> tuple[bool, bool]:
    if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
        return processor["cls"][0] == special["bos"], processor["sep"][0] == special["eos"]
    names = [piece.get("SpecialToken", {}).get("id") for piece in processor.get("single", [])]
    return special["bos"] in names[:1], special["eos"] in names[-1:]
