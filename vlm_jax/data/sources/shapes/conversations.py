"""`ShapesQuestions`: questions about drawn scenes, as conversations of one turn."""

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
    """An image, a question about it, and its answer, a word: `Shapes.questions` as conversations.

    Attributes:
      shapes: the scenes.
      per_scene: questions about each, drawn at random and different as far as there are so many (5 to 8); None takes
        every question once, as for evaluation: scenes are then drawn once to count them.
      described: a sentence says what the scene has, in place of its image; relations are not asked for. So a model of
        images is trained on texts as well, in a mixture.
    """

    shapes: Shapes
    per_scene: int | None = 1
    described: bool = False

    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises: UserError for no questions."""
        if self.per_scene is not None and self.per_scene < 1:
            raise UserError(
                f"ShapesQuestions.per_scene={self.per_scene} must be at least 1, or None for all questions."
            )

    @property
    def name(self) -> str:
        return f"{self.shapes.name}/questions"

    @functools.cached_property
    def fingerprint(self) -> str:
        return content_hash(_VERSION, self.shapes.fingerprint, self.per_scene, self.described)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.per_scene is None else self.per_scene * len(self.shapes)

    def __getitem__(self, index: int) -> dict:
        """`messages`, a question and its answer; `answers`, `type` (one of `questions.TYPES`), `key` "SCENE:NUMBER".

        `cluster` is the scene, whose questions depend on one another. And `image` uint8 [image_size, image_size, 3],
        unless it is described.
        """
        scene, number, asked = self._asked(index)
        drawn = self.shapes.scene(scene)
        content = [{"type": "image"}, {"type": "text", "text": asked.question}]
        if self.described:
            content = f"{description(drawn)}. {asked.question}"
        return {
            **({} if self.described else {"image": render(drawn, self.shapes.image_size)}),
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": asked.answer}],
            "answers": [asked.answer],
            "type": asked.type,
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
            yield asked.question
            yield asked.answer

    def _asked(self, index: int) -> tuple[int, int, Question]:
        """Scene, number of the question, and the question."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} questions, asked for number {index}.")
        if self.per_scene is None:
            scene, number = locate(self._starts, index)
            return scene, number, self._answerable(self.shapes.questions(scene))[number]
        scene, number = divmod(index, self.per_scene)
        asked = self._answerable(self.shapes.shuffled_questions(scene))
        return scene, number, asked[number % len(asked)]

    def _answerable(self, asked: list[Question]) -> list[Question]:
        return [question for question in asked if not (self.described and question.type == "relation")]

    @functools.cached_property
    def _starts(self) -> Int64[np.ndarray, "scenes+1"]:
        return starts_of(len(self._answerable(self.shapes.questions(scene))) for scene in range(len(self.shapes)))
