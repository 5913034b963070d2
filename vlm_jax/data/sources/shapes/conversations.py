"""`ShapesQuestions`: questions about drawn scenes, as conversations."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from jaxtyping import Int64

from vlm_jax.data.sources.parts import locate, starts_of
from vlm_jax.data.sources.shapes.captions import description
from vlm_jax.data.sources.shapes.draw import render
from vlm_jax.data.sources.shapes.questions import Question
from vlm_jax.data.sources.shapes.source import Shapes
from vlm_jax.data.storage import content_hash
from vlm_jax.errors import UserError

_VERSION = 1  # part of the fingerprint: raise it whenever the same index gives another record


@dataclasses.dataclass(frozen=True)
class ShapesQuestions:
    """An image, questions about it, each with its answer, a word: `Shapes.questions` as conversations.

    Attributes:
      shapes: the scenes.
      per_scene: conversations about each, of questions drawn at random and different as far as there are so many (5 to
        8); None takes every question once, as for evaluation: scenes are then drawn once to count them.
      turns: questions of a conversation, or all there are; several make more of each image, as its tokens are computed
        once for all. Evaluators ask the last one, after the others' answers.
      described: a sentence says what the scene has, in place of its image; relations are not asked for. So a model of
        images is trained on texts as well, in a mixture.
    """

    shapes: Shapes
    per_scene: int | None = 1
    turns: int = 1
    described: bool = False

    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for no questions, or several of those that are taken one by one."""
        if self.per_scene is not None and self.per_scene < 1:
            raise UserError(
                f"ShapesQuestions.per_scene={self.per_scene} must be at least 1, or None for all questions."
            )
        if self.turns < 1 or (self.per_scene is None and self.turns > 1):
            wanted = "1, as per_scene=None takes questions one by one" if self.turns > 1 else "at least 1"
            raise UserError(f"ShapesQuestions.turns={self.turns} must be {wanted}.")

    @property
    def name(self) -> str:
        return f"{self.shapes.name}/questions"

    @functools.cached_property
    def fingerprint(self) -> str:
        return content_hash(_VERSION, self.shapes.fingerprint, self.per_scene, self.turns, self.described)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.per_scene is None else self.per_scene * len(self.shapes)

    def __getitem__(self, index: int) -> dict:
        """`messages`, questions and answers in turn; of the last one `answers` and `type` (one of `questions.TYPES`).

        `key` is "SCENE:NUMBER", `cluster` is the scene, whose questions depend on one another. And `image` uint8
        [image_size, image_size, 3], unless it is described.
        """
        scene, number, asked = self._asked(index)
        drawn = self.shapes.scene(scene)
        messages = []
        for question in asked:
            messages.append({"role": "user", "content": question.question})
            messages.append({"role": "assistant", "content": question.answer})
        if self.described:
            messages[0]["content"] = f"{description(drawn)}. {asked[0].question}"
        else:
            messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": asked[0].question}]
        return {
            **({} if self.described else {"image": render(drawn, self.shapes.image_size)}),
            "messages": messages,
            "answers": [asked[-1].answer],
            "type": asked[-1].type,
            "cluster": scene,
            "key": f"{scene}:{number}",
        }

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """The first questions, each followed by its answer, at most `limit` texts, to train a tokenizer on."""
        return itertools.islice(self._texts(), limit)

    def _texts(self) -> Iterator[str]:
        for index in range(len(self)):
            scene, _, asked = self._asked(index)
            if self.described:
                yield f"{description(self.shapes.scene(scene))}."
            for question in asked:
                yield question.question
                yield question.answer

    def _asked(self, index: int) -> tuple[int, int, list[Question]]:
        """Scene, number of the conversation, and its questions."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} conversations, asked for number {index}.")
        if self.per_scene is None:
            scene, number = locate(self._starts, index)
            return scene, number, [self._answerable(self.shapes.questions(scene))[number]]
        scene, number = divmod(index, self.per_scene)
        asked = self._answerable(self.shapes.shuffled_questions(scene))
        first, turns = number * self.turns, min(self.turns, len(asked))
        return scene, number, [asked[k % len(asked)] for k in range(first, first + turns)]

    def _answerable(self, asked: list[Question]) -> list[Question]:
        return [question for question in asked if not (self.described and question.type == "relation")]

    @functools.cached_property
    def _starts(self) -> Int64[np.ndarray, "scenes+1"]:
        return starts_of(len(self._answerable(self.shapes.questions(scene))) for scene in range(len(self.shapes)))
