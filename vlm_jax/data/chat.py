"""Conversations in tokens, of which the answers are known.

A conversation is tokenized in pieces that end where an answer begins, so that which tokens are an answer's is known by
construction. Finding them again, by tokenizing parts a second time and counting, loses track of a token where a
tokenizer joins letters over the seam.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vlm_jax.data.chat_template import BEGIN, END, IMAGE, Item, Message, Template
from vlm_jax.data.reader import UnreadableText
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError


class Piece(NamedTuple):
    """Tokens that follow one another, or an image (None), and whether they are to be learnt."""

    tokens: tuple[int, ...] | None
    target: bool


@dataclasses.dataclass(frozen=True)
class Chat:
    """A template in the tokens of a tokenizer.

    Attributes:
      text: its tokenizer, and how the content of turns is canonicalised; `bos` begins every conversation with the begin
        token also where the template does not. Nothing else of it counts here.
    """

    template: Template
    text: Text

    def check(self) -> None:
        """Raises: UserError where the tokenizer lacks a token of the template, or cannot write its texts."""
        model = self.text.model
        for fixed, is_token in self.template.strings():
            if is_token:
                self.token(fixed)
            elif model.unk_id is not None and model.unk_id in model.spell(fixed):
                raise UserError(f"tokenizer={self.text.tokenizer!r} cannot write {fixed[:40]!r} of the chat template.")

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self.token(self.template.end)

    def token(self, name: str) -> int:
        """The id of a token of the template. Raises: UserError where the tokenizer has none."""
        model = self.text.model
        if name in (BEGIN, END):
            found = model.bos_id if name == BEGIN else model.eos_id
        else:
            found = model.special(name)
        if found is None and name == "\n" and (spelt := model.spell(name)) and spelt[-1] != model.unk_id:
            found = spelt[-1]  # before it there may be the space that a text begins with
        if found is None:
            raise UserError(
                f"tokenizer={self.text.tokenizer!r} has no token {name!r}, which the chat template needs: "
                "take another template, or 'train:N', which adds it."
            )
        return found

    def __call__(self, messages: Sequence[Message], *, images: int, prompt: bool = False) -> list[Piece]:
        """The conversation in tokens.

        Args:
          images: how many it has; its turns must have as many places for them.
          prompt: go on to where the next answer begins.

        Raises: UnreadableText for what `Template.items` raises it for, or another number of places than of images.
        """
        items = self.template.items(messages, prompt=prompt, canonical=self.text.canonical)
        places = sum(item.kind == "image" for item in items)
        if places != images:
            raise UnreadableText(f"it has {images} images and {places} places ({IMAGE}) for them")
        begins = bool(items) and items[0].text == BEGIN and items[0].kind == "token"
        if self.text.bos and not begins:
            items = [Item(BEGIN, "token"), *items]
        return [Piece(self._tokens(item), item.target) for item in items]

    def _tokens(self, item: Item) -> tuple[int, ...] | None:
        if item.kind == "image":
            return None
        if item.kind == "token":
            return (self.token(item.text),)
        text, model = item.text, self.text.model
        if item.target and text.startswith(" ") and model.adds_space:
            text = text[1:]  # as it stands in the middle of a text: the space in front is added
        return tuple(model.spell(text))
