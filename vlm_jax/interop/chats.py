"""How models of other libraries are talked to, which their files say in programs (Jinja) and not in data: a guess."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import bind
from vlm_jax.interop.imported import complete, read_json

BY_KIND = {"qwen2": "chatml", "qwen3": "chatml", "llava": "vicuna", "llava_next": "vicuna"}
MARKS = {"<|im_start|>": "chatml", "[INST]": "llama2", "USER:": "vicuna"}
SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>")


def conversations(folder: Path, kind: str, images: ConfigDict | None) -> ConfigDict | None:
    """A bound `Conversations`, or None for a model whose prompts are continued as they stand.

    The template is guessed: "chatml", "llama2" or "vicuna" where the chat template of the folder has their marks, with
    the system text that a ChatML one begins with; else by `kind` of the model, "chatml" of Qwen and "vicuna", with
    LLaVA-1.5's system text, of LLaVA. A language model without a chat template was not trained on conversations.
    """
    written = _written(folder)
    name = next((name for mark, name in MARKS.items() if mark in written), BY_KIND.get(kind))
    if name is None and images is None:
        return None
    options: dict[str, Any] = {"template": name or "vicuna", "images": images}
    if name == "chatml" and written:
        found = SYSTEM.search(written)
        options["system"] = found[1] if found else ""
    return complete(bind("data.conversations.Conversations", **options))


def _written(folder: Path) -> str:
    """The chat template of a folder, "" for none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    config = folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several by name
        found = next((one["template"] for one in found if one.get("name") == "default"), "")
    return found or ""


def sampling(folder: Path) -> ConfigDict:
    """A bound `Sampling` with the end tokens that the folder names; greedy, as all of ours."""
    stop = _named(folder, "eos_token_id")
    return complete(bind("generate.Sampling", stop=tuple(stop) if isinstance(stop, list) else (stop,) if stop else ()))


def begin_id(folder: Path) -> int | None:
    """The token that captions begin with, where the folder names one."""
    return _named(folder, "decoder_start_token_id")


def _named(folder: Path, key: str) -> Any:
    """Of generation_config.json, or of the config, or of its decoder's."""
    for name in ("generation_config.json", "config.json"):
        config = read_json(folder / name) if (folder / name).is_file() else {}
        for part in (config, config.get("text_config") or {}, config.get("decoder") or {}):
            if part.get(key) is not None:
                return part[key]
    return None
