"""Turns and images of conversations, in the ways in which rows of data sets have them."""

from __future__ import annotations

from typing import Any

from vlm_jax.data.sources.base import Missing

TURNS, IMAGES = ("messages", "conversations"), ("images", "image")
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's names


def turns_of(row: dict[str, Any]) -> tuple[list[dict], list[Any]]:
    """Role and content of each turn, and what stands for the images.

    Raises: Missing for what are no turns, or images both in the row and in its turns.
    """
    turns = next((row[name] for name in TURNS if row.get(name) is not None), None)
    if not isinstance(turns, list) or not turns:
        raise Missing(f"it has no turns in {' or '.join(TURNS)}")
    messages, own, places = [], [], []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise Missing(f"turn {number} is {str(turn)[:40]!r}, wanted are role and content")
        role, content = (turn.get(name, turn.get(other)) for name, other in (("role", "from"), ("content", "value")))
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
                    own += [value] if (value := _of_part(part)) is not None else []
                    places += [part["index"]] if isinstance(part.get("index"), int) else []
            content = [_plain(part) for part in content]
        messages.append({"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content})
    images = next((row[name] for name in IMAGES if row.get(name)), [])
    images = images if isinstance(images, list) else [images]
    if images and own:
        raise Missing("it has images in its turns and beside them")
    if places and not own:
        if sorted(places) != list(range(len(images))):
            raise Missing(f"its turns ask for the images {places}, and it has {len(images)}")
        images = [images[place] for place in places]
    return messages, own or images


def _plain(part: Any) -> Any:
    """A part with its type, and its text where it is one."""
    if not isinstance(part, dict):
        return part
    kind = "image" if part.get("type") == "image_url" else part.get("type")
    return {"type": kind, **({"text": part["text"]} if part.get("text") is not None else {})}


def _of_part(part: dict) -> Any:
    """What a part of a turn says of its image, None if nothing."""
    value = next((part[name] for name in ("image", "image_url", "path", "url") if part.get(name)), None)
    return value.get("url") if isinstance(value, dict) and "url" in value else value


def held(value: Any) -> bytes | str:
    """The bytes of an image, or its name. Raises: Missing."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (bytes, str)) or not value:
        raise Missing(f"an image is {str(value)[:40]!r}, wanted are its bytes or its name")
    return value
