"""What models that write are asked: images, prompts and answers, each one or several, and options of sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from vlm_jax.data.chat_template import IMAGE, Message
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest
from vlm_jax.generate import Sampling
from vlm_jax.library.batches import Images, content, is_several, listed

Prompt = str | Sequence[Message] | None
# Fields of `Sampling` that users choose; what ends a text is the model's own.
OPTIONS = ("max_tokens", "temperature", "top_k", "top_p", "beams", "length_penalty")


class Asked(NamedTuple):
    """One question: its images as `ImageTransform` takes them, the prompt, and the answer that is to be scored."""

    images: tuple[Any, ...]
    prompt: Prompt
    answer: str | None


def sampling(own: Sampling, options: Mapping[str, Any]) -> Sampling:
    """`own` with what the user chose; `None` is what it was. Raises UserError."""
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"generate has no option {name!r}; {closest(name, OPTIONS)}")
    return dataclasses.replace(own, **{name: value for name, value in options.items() if value is not None})


def asked(image: Images | None, prompt: Any, answer: Any = None) -> tuple[list[Asked], bool]:
    """The questions, and whether there are several: then the result is a list, though it may be of one.

    Lists belong together element by element; what is no list goes with each. The images of a prompt with several
    places are a list themselves. Raises UserError for lists of different lengths.
    """
    lists = {}
    if _several_prompts(prompt):
        lists["prompts"] = list(prompt)
    if answer is not None and not isinstance(answer, str):
        lists["answers"] = list(answer)
    if image is not None and is_several(image):
        images = listed(image)
        own = "prompts" not in lists and _places(prompt) > 1 and not any(map(_is_list, images))
        if not own:
            lists["images"] = images
    if len(sizes := {len(values) for values in lists.values()}) > 1:
        held = " and ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise UserError(f"{held}: lists belong together one by one; give as many of each, or one for all.")
    count = sizes.pop() if sizes else 1
    of = lambda name, one: lists.get(name, [one] * count)
    rows = zip(of("images", image), of("prompts", prompt), of("answers", answer))
    return [Asked(_shown(shown), words, wanted) for shown, words, wanted in rows], bool(lists)


def _several_prompts(prompt: Any) -> bool:
    if prompt is None or isinstance(prompt, str):
        return False
    if not isinstance(prompt, Sequence):
        raise UserError(f"a prompt is a text or a list of messages, not {type(prompt).__name__}.")
    return not (prompt and isinstance(prompt[0], Mapping))


def _is_list(shown: Any) -> bool:
    return isinstance(shown, list | tuple)


def _shown(images: Any) -> tuple[Any, ...]:
    return () if images is None else tuple(content(image) for image in listed(images))


def _places(prompt: Prompt) -> int:
    """How many images a prompt has places for."""
    if prompt is None or isinstance(prompt, str):
        return (prompt or "").count(IMAGE)
    return sum(_places_of(message.get("content")) for message in prompt)


def _places_of(written: Any) -> int:
    if isinstance(written, str):
        return written.count(IMAGE)
    return sum(isinstance(part, Mapping) and part.get("type") == "image" for part in written or ())


def decoded(text: Text, tokens: Int[np.ndarray, "n max_tokens"], stops: Sequence[int]) -> list[str]:
    """What rows of written tokens say, up to the first that stops them."""
    rows = np.asarray(tokens)
    ended = np.cumsum(np.isin(rows, stops), axis=1) > 0
    return [text.model.decode(row[~over].tolist()).strip() for row, over in zip(rows, ended)]
