"""Chat templates as data: what stands before and after each turn of a conversation, and which of it are answers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vlm_jax.data.reader import UnreadableText, says_something
from vlm_jax.errors import UserError, closest

ROLES = ("system", "user", "assistant")
IMAGE = "<image>"
BEGIN, END = "<bos>", "<eos>"  # in templates: the tokenizer's own
# `role`, and `content`: a text, or a list of {"type": "image"} and {"type": "text", "text": ...}.
Message = Mapping[str, Any]
Parts = Sequence[str | None]  # texts of a turn, and None for each image


class Item(NamedTuple):
    """A stretch of a written conversation. A token is written by its name, an image as `IMAGE`."""

    text: str
    kind: Literal["text", "token", "image"]
    target: bool = False


@dataclasses.dataclass(frozen=True)
class Turn:
    """What stands before and after a turn's content."""

    before: str = ""
    after: str = ""


@dataclasses.dataclass(frozen=True)
class Template:
    """How conversations are written.

    An answer ends with the first token after it, which is learnt with it. A space right before an answer belongs to it,
    for so tokenizers split.

    Attributes:
      turns: by role, "system", "user" and "assistant".
      system: the system text of conversations without one of their own; "" for none.
      begin: what a conversation begins with.
      tokens: strings in the template that are one token each, besides "<bos>" and "<eos>", which mean the tokenizer's
        begin and end token. In the content of turns all of them are ordinary text.
      system_inside: the system turn stands in the first user's turn, before its content.
    """

    turns: Mapping[str, Turn]
    system: str = ""
    begin: str = ""
    tokens: tuple[str, ...] = ()
    system_inside: bool = False

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for roles that are none, or answers that no token ends."""
        for role in self.turns:
            if role not in ROLES:
                raise UserError(f"Template.turns has a role {role!r}: {closest(role, ROLES)}")
        for role in ("user", "assistant"):
            if role not in self.turns:
                raise UserError(f"Template.turns has no {role!r}: say what stands before and after its turns.")
        if self.system and "system" not in self.turns:
            raise UserError("Template.system needs Template.turns.system: what stands before and after it.")
        if not any(is_token for _, is_token in self._split(self.turns["assistant"].after)):
            after = self.turns["assistant"].after
            raise UserError(
                f"Template.turns.assistant.after={after!r} has no token that ends an answer: put '{END}' there, "
                "or name it in Template.tokens."
            )

    @property
    def end(self) -> str:
        """The token that ends an answer."""
        return next(text for text, is_token in self._split(self.turns["assistant"].after) if is_token)

    def strings(self) -> Iterator[tuple[str, bool]]:
        """The fixed texts, and the tokens (True)."""
        for fixed in (self.begin, self.system, *(s for turn in self.turns.values() for s in (turn.before, turn.after))):
            yield from self._split(fixed)

    def items(
        self, messages: Sequence[Message], *, prompt: bool = False, canonical: Callable[[str], str] = str
    ) -> list[Item]:
        """The conversation as it is written, texts that nothing separates as one, but for where an answer begins.

        Args:
          prompt: go on to where the next answer begins.
          canonical: brings the content of turns to the form in which it is tokenized.

        Raises: UnreadableText for an unknown role, an empty answer, or content that is neither texts nor images.
        """
        turns = self._checked(messages, canonical)
        if turns and turns[0][0] == "system":
            system, turns = "".join(turns[0][1]), turns[1:]
        else:
            system = self.system
        pen = _Pen(self._split)
        pen.template(self.begin)
        if system and not self.system_inside:
            pen.turn(self.turns["system"], [system])
            system = ""
        for role, parts in turns:
            turn = self.turns[role]
            if role == "assistant":
                pen.answer(turn, "".join(parts))
            else:
                pen.template(turn.before)
                if system:
                    pen.turn(self.turns["system"], [system])
                    system = ""
                pen.content(parts)
                pen.template(turn.after)
        if prompt:
            pen.template(self.turns["assistant"].before.rstrip(" "))
        pen.end_run()
        return pen.items

    def _checked(self, messages: Sequence[Message], canonical: Callable[[str], str]) -> list[tuple[str, Parts]]:
        """Role and content of each turn. Raises: UnreadableText."""
        turns = []
        for number, message in enumerate(messages, 1):
            if not isinstance(message, Mapping):
                raise UnreadableText(f"turn {number} is of type {type(message).__name__}, wanted are role and content")
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or role not in self.turns:
                raise UnreadableText(f"turn {number} has the role {role!r}: {closest(str(role), self.turns)}")
            if role == "system" and number > 1:
                raise UnreadableText(f"turn {number} is of 'system', which only the first turn can be")
            try:
                parts = [part if part is None else canonical(part) for part in _parts(role, content)]
            except UnreadableText as error:
                raise UnreadableText(f"turn {number}, of {role!r}: {error}") from None
            if role != "user" and None in parts:
                raise UnreadableText(f"turn {number}, of {role!r}, has an image: only those of 'user' may")
            if role == "assistant" and not "".join(parts).strip():
                raise UnreadableText(f"turn {number}, of {role!r}, is an empty answer")
            turns.append((role, parts))
        return turns

    def _split(self, fixed: str) -> list[tuple[str, bool]]:
        """Of a string in the template its texts, and its tokens (True)."""
        pattern = "|".join(map(re.escape, (BEGIN, END, *self.tokens)))
        parts = re.split(f"({pattern})", fixed)
        return [(part, bool(place % 2)) for place, part in enumerate(parts) if part]


class _Pen:
    """Writes items one after another; texts become one until something else follows."""

    def __init__(self, split: Callable[[str], list[tuple[str, bool]]]):
        self.items: list[Item] = []
        self._split, self._run = split, ""

    def template(self, fixed: str) -> None:
        for text, is_token in self._split(fixed):
            if is_token:
                self._add(Item(text, "token"))
            else:
                self._run += text

    def content(self, parts: Sequence[str | None]) -> None:
        for part in parts:
            if part is None:
                self._add(Item(IMAGE, "image"))
            else:
                self._run += part

    def turn(self, turn: Turn, parts: Sequence[str | None]) -> None:
        self.template(turn.before)
        self.content(parts)
        self.template(turn.after)

    def answer(self, turn: Turn, text: str) -> None:
        before = turn.before.rstrip(" ")
        self.template(before)
        after = self._split(turn.after)
        end = next(place for place, (_, is_token) in enumerate(after) if is_token)
        learnt = turn.before[len(before) :] + text + "".join(part for part, _ in after[:end])
        self._add(Item(learnt, "text", True))
        self._add(Item(after[end][0], "token", True))
        self.template("".join(part for part, _ in after[end + 1 :]))

    def end_run(self) -> None:
        if self._run:
            self.items.append(Item(self._run, "text"))
            self._run = ""

    def _add(self, item: Item) -> None:
        self.end_run()
        self.items.append(item)


def _parts(role: str, content: Any) -> list[str | None]:
    """Texts of a turn's content, and None for each image. Raises: UnreadableText."""
    if isinstance(content, str):
        texts = content.split(IMAGE) if role == "user" else [content]
        parts = [part for text in texts for part in (None, text)][1:]
    elif isinstance(content, (list, tuple)):
        parts = [_part(part) for part in content]
    else:
        raise UnreadableText(f"its content is of type {type(content).__name__}, wanted is a text or a list of parts")
    for part in parts:
        says_something(part)
    return parts


def _part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "text":
        raise UnreadableText("a part of type 'text' has no 'text'")
    if kind != "image":
        raise UnreadableText(f"a part is of type {kind!r}: {closest(str(kind), ('image', 'text'))}")
    return None


def template_of(template: str | Template) -> Template:
    """The template of a name. Raises: UserError with the nearest names."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UserError(f"template={template!r}: {closest(template, TEMPLATES)}")
    return TEMPLATES[template]


def _chatml(system: str) -> Template:
    turns = {role: Turn(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}
    return Template(turns, system=system, tokens=("<|im_start|>", "<|im_end|>"))


TEMPLATES = {
    "plain": Template({"system": Turn("", "\n"), "user": Turn("", "\n"), "assistant": Turn("", END)}, tokens=("\n",)),
    "vicuna": Template(  # LLaVA-1.5's "v1"
        {"system": Turn("", " "), "user": Turn("USER: ", " "), "assistant": Turn("ASSISTANT: ", END)},
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        begin=BEGIN,
    ),
    "llama2": Template(
        {
            "system": Turn("<<SYS>>\n", "\n<</SYS>>\n\n"),
            "user": Turn(f"{BEGIN}[INST] ", " [/INST]"),
            "assistant": Turn(" ", f" {END}"),
        },
        system_inside=True,
    ),
    "chatml": _chatml("You are a helpful assistant."),  # Qwen2's
    "smollm": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),  # SmolLM2's
}
