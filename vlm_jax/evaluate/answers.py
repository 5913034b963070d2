"""Answers to questions about images: what the model writes, or which of several answers it finds likeliest."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from vlm_jax import mesh as meshes
from vlm_jax.data.conversations import Conversations, images_of, messages_of
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform, open_image
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.answer_scores import METRICS, Question, commonest, scored
from vlm_jax.evaluate.base import Evaluator, Predict, Result, rounded
from vlm_jax.evaluate.likelihood import TIE
from vlm_jax.redact import hidden
from vlm_jax.report.artifacts import Gallery

PLACE = re.compile(r"\s*<image>\s*")
SIDE = 160  # pixels of a picture in the report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(Evaluator):
    """Scores of what the model answers to the last question of each conversation of a source.

    Args:
      source: records of `messages`, the last of which is the right answer, and `image` or `images`; `answers` where
        there are several (of ten people, for "vqa_accuracy"); `type` of the question; `cluster`, a number that is the
        same for records that depend on one another, which intervals draw together.
      conversations, image, text: how conversations become rows of tokens.
      length: tokens of the longest question, its images' places with them; `text.length` unless given.
      metric: "accuracy", whether it is one of the answers, all normalised; "vqa_accuracy"; "anls"; or "cer", the
        character error rate, where less is better. See `text_metrics`.
      choices: the likeliest of these is the answer, and nothing is written; a tie is no answer.
      train: where the commonest answer of each type is looked for; the source itself unless given.
      shown: pictures of a row in the report.
    """

    source: Any
    conversations: Conversations
    image: ImageTransform
    text: Text
    length: int | None = None
    metric: Literal["accuracy", "vqa_accuracy", "anls", "cer"] = "accuracy"
    choices: tuple[str, ...] = ()
    train: Any = None
    shown: int = 12

    def validate(self) -> None:
        super().validate()
        if self.metric not in METRICS:
            raise UserError(f"Answers.metric={self.metric!r}: {closest(self.metric, METRICS)}")
        if len(self.choices) == 1:
            raise UserError(f"Answers.choices={self.choices}: with one there is nothing to choose.")

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`METRIC` over all questions, `METRIC/TYPE`, `macro` the mean over types, and `examples`.

        `majority` is what giving each type's commonest answer scores, `majority/TYPE` that of a type; `over_majority`
        is what the model scores more, with its 95% interval `over_majority_low` to `over_majority_high`.
        """
        function = "score" if self.choices else "answer"
        if function not in predict:
            raise UserError(f"Answers: the model gives no {function!r}; {closest(function, predict)}")
        questions, answers = self._asked(predict[function], mesh)
        usual = commonest(questions if self.train is None else self._trained, self.metric)
        result = scored(self.metric, questions, answers, usual)
        result.artifacts["answers"] = self._gallery(questions, result.rows["answers"])
        return result

    @functools.cached_property
    def _text(self) -> Text:
        return self.text if self.length is None else dataclasses.replace(self.text, length=self.length)

    def _asked(self, function: Callable, mesh: Mesh) -> tuple[list[Question], list[str]]:
        """The questions of all records that can be read, and what the model answers."""
        size = rounded(min(self.batch_size, len(self.source)), mesh)
        mine = meshes.local_rows(mesh, size)
        filler = next(filter(None, (self._read(self.source, index) for index in range(len(self.source)))), None)
        if filler is None:
            raise UserError(f"Answers: none of the {len(self.source)} records of {self.source.name} can be read.")
        questions, answers = [], []
        for start in range(0, len(self.source), size):
            numbers = (start + mine).tolist()
            read = {index: self._read(self.source, index) for index in numbers if index < len(self.source)}
            there = np.array([read.get(index) is not None for index in numbers])
            there = meshes.gather(meshes.put({"there": there}, mine, size, mesh)["there"], mesh)
            given = self._answers(function, [read.get(index) or filler for index in numbers], mine, size, mesh)
            for row in np.flatnonzero(there).tolist():
                index = start + row
                record = read.get(index) or self.source[index]  # of another process' row
                questions.append(self._question(self.source, index, record))
                answers.append(given[row])
        return questions, answers

    def _answers(
        self, function: Callable, records: Sequence[Mapping], mine: Int[np.ndarray, "local"], size: int, mesh: Mesh
    ) -> list[str]:
        """The answers of a batch, those of the rows of other processes too."""

        def ask(make: Callable, records: Sequence[Mapping]) -> np.ndarray:
            batch = make(records, image=self.image, text=self._text)
            return meshes.gather(function(meshes.put(batch, mine, size, mesh)), mesh)

        if not self.choices:
            return self._decoded(ask(self.conversations.prompts, records))
        scores = [ask(self.conversations.scored, [_ending(r, choice) for r in records]) for choice in self.choices]
        best, second = np.sort(scores, axis=0)[[-1, -2]]
        clear = best > second + TIE
        return [self.choices[k] if clear[row] else "" for row, k in enumerate(np.argmax(scores, axis=0).tolist())]

    def _decoded(self, tokens: Int[np.ndarray, "n max_tokens"]) -> list[str]:
        ended = np.cumsum(tokens == self.conversations.chat(self.text).end_id, axis=1) > 0
        plain = dataclasses.replace(self.text, bos=False)
        return [text.strip() for text in plain.decode(np.where(ended, self.text.pad_id, tokens))]

    def _read(self, source: Any, index: int) -> Mapping | None:
        try:
            return source[index]
        except UnreadableRecord as error:
            logging.warning("evaluation leaves out %s", hidden(str(error)))
            return None

    @functools.cached_property
    def _trained(self) -> list[Question]:
        read = ((index, self._read(self.train, index)) for index in range(len(self.train)))
        return [self._question(self.train, index, record) for index, record in read if record is not None]

    def _question(self, source: Any, index: int, record: Mapping) -> Question:
        """Raises: UserError where it has no answer, or not as many as the metric needs."""
        turns = messages_of(record)
        last = _written(turns.pop()) if turns[-1]["role"] == "assistant" else None
        references = tuple(record.get("answers") or ([] if last is None else [last]))
        if not references or (self.metric == "vqa_accuracy" and len(references) < 2):
            wanted = "answers of several people (`answers`)" if references else "an answer at its end"
            raise UserError(f"Answers: record {record.get('key', index)} of {source.name} lacks {wanted}.")
        asked = _written(turns[-1]) if turns else ""
        return Question(index, asked, references, record.get("type", ""), record.get("cluster", index))

    def _gallery(self, questions: Sequence[Question], rows: Mapping[str, np.ndarray]) -> Gallery:
        """The first right and wrong answers to questions with a picture."""
        right = rows["exact_match" if self.metric == "cer" else self.metric] > 0.5
        out = []
        for good, heading in ((True, "right"), (False, "wrong")):
            chosen, pictures = np.flatnonzero(right == good), []
            for k in chosen[: self.shown].tolist():
                text = f"{questions[k].text} {rows['answer'][k]} (reference: {rows['truth'][k]})"
                images = images_of(self.source[questions[k].index])[:1]
                pictures += [(np.asarray(open_image(image, SIDE)), text, good) for image in images]
            if pictures:
                out.append((f"{heading}: {len(chosen):,} of {len(questions):,}", pictures))
        return Gallery("answers", out)


def _written(message: Mapping[str, Any]) -> str:
    """The text of a turn, without the places of images."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return PLACE.sub(" ", content).strip()


def _ending(record: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The record with another answer at its end."""
    turns = messages_of(record)
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    return {**record, "messages": [*turns, {"role": "assistant", "content": answer}]}
