"""Text preprocessing as other libraries' tokenizer files describe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.errors import UserError
from vlm_jax.interop.source import complete, read_json

# Files of tokenizers, the one that says most first.
FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
CANONICAL = {"canonicalize": "siglip", "lower": "lower", "whitespace": "none"}


@dataclasses.dataclass(frozen=True)
class Words:
    """A bound `Text`, and the path of its tokenizer."""

    text: ConfigDict
    tokenizer: str | None


def from_hugging_face(folder: Path, length: int) -> Words:
    """What `tokenizer_config.json` and the tokenizer's own file say, for rows of `length` tokens. Raises UserError."""
    config = read_json(folder / "tokenizer_config.json")
    file = tokenizer_file(folder)
    if file is None:
        raise UserError(f"{folder} has no tokenizer: wanted is {', '.join(FILES)}.")
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    special = {key: _token(config.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
    if name == "SiglipTokenizer":
        special = {key: special[key] or "</s>" for key in ("eos", "pad")}
        before, after = False, True
        canonical = "siglip"
    else:
        canonical = "lower" if name == "Siglip2Tokenizer" else "none"
        before, after = _added(file, config, special)
        if name == "CLIPTokenizer" and file.name != "tokenizer.json":
            before = after = True
            canonical = "lower"
    node = bind(
        "data.text.Text",
        tokenizer=str(file),
        length=length,
        canonicalise=canonical,
        bos=before,
        eos="sticky" if after else "none",
        pad="eos" if special["pad"] == special["eos"] else "pad",
    )
    return Words(complete(node), str(file))


def from_open_clip(folder: Path, text: dict, length: int) -> Words:
    """What `text_cfg` says; a tokenizer that is named there lies in the folder, the built-in one has no file."""
    kwargs = text.get("tokenizer_kwargs") or {}
    canonical = kwargs.get("clean", "whitespace" if text.get("hf_tokenizer_name") else "lower")
    if canonical not in CANONICAL:
        raise UserError(f"{folder}: tokenizer_kwargs.clean={canonical!r} is not supported; {list(CANONICAL)} are.")
    file = tokenizer_file(folder)
    if text.get("hf_tokenizer_name"):
        words = from_hugging_face(folder, length)
        if CANONICAL[canonical] == "none":
            return words
        return Words(complete(bind(**_arguments(words.text) | {"canonicalise": CANONICAL[canonical]})), words.tokenizer)
    options = {"length": length, "canonicalise": CANONICAL[canonical], "bos": True, "eos": "sticky", "pad": "pad"}
    if file is not None:
        options["tokenizer"] = str(file)
    return Words(complete(bind("data.text.Text", **options)), str(file) if file else None)


def _arguments(node: ConfigDict) -> dict[str, Any]:
    return {"target": node["_target"], **{key: node[key] for key in node if key != "_target"}}


def tokenizer_file(folder: Path) -> Path | None:
    """The file that holds the vocabulary of a folder's tokenizer."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


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
