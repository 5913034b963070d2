"""Classification and choice by a model that writes: the text that it would most likely write about the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.packing import text_lengths
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Embedded, Evaluator, Predict, embed_rows, joined, placed_batches
from vlm_jax.evaluate.choice import Choose, Scored
from vlm_jax.evaluate.zero_shot import ZeroShot

# Sums of log-probabilities closer than this are equal: f32 sums of some dozens of them, in batches of other shapes,
# differ in their last bits.
TIE = 1e-4
GREY = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ByLikelihood(Evaluator):
    """What both evaluators have: scores of the texts of images.

    Args:
      normalise: divide by the number of tokens, so that a long text has no disadvantage (GPT-3's multiple choice,
        Brown et al. 2020, section 2.4).
      prior: how much of log p(text | grey image) is taken off: what is likely whatever the image shows counts less.
        1 takes off all of it (Lin et al. 2024, arXiv:2306.01879).
    """

    source: Any
    image: ImageTransform
    text: Text
    normalise: bool = False
    prior: float = 0.0

    TIE: ClassVar[float] = TIE

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.prior <= 1:
            raise UserError(f"{type(self).__name__}.prior={self.prior}: wanted is 0 <= prior <= 1.")

    def likelihoods(
        self,
        predict: Predict,
        mesh: Mesh,
        rows_of: Callable[[int], Int[np.ndarray, "texts"]],
        tokens: Int[np.ndarray, "distinct length"],
        more: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Embedded:
        """Scores of each record's texts as `vectors` [n, texts].

        Every text is a pass of the whole model over the image.

        Args:
          rows_of: the rows of `tokens` that are the texts of a record, equally many of each.
        """
        name = "log_likelihood"
        if name not in predict:
            raise UserError(f"{type(self).__name__}: the model gives no {name!r}; {closest(name, predict)}")
        function, scores, columns = predict[name], [], []
        for batch in placed_batches(self.source, self.image, self.batch_size, mesh, more):
            which = np.stack([rows_of(record) for record in batch.index.tolist()])
            of_texts = [
                meshes.gather(function(batch.pixels, batch.place(tokens[which[:, k]])), mesh)
                for k in range(which.shape[1])
            ]
            scores.append(np.stack(of_texts, axis=1)[batch.keep])
            columns.append(batch.columns)
        found = joined(columns)
        which = np.stack([rows_of(record) for record in found["index"].tolist()])
        return Embedded(self._corrected(np.concatenate(scores), which, function, tokens, mesh), found)

    def _corrected(self, scores, which, function, tokens, mesh) -> Float[np.ndarray, "n texts"]:
        if self.prior:
            scores = scores - self.prior * _of_grey(function, tokens, self.image, self.batch_size, mesh)[which]
        if self.normalise:
            lengths = text_lengths(tokens, self.text.pad_id, self.text.eos_id)
            scores = scores / np.maximum(lengths - 1, 1)[which]  # the first token is given
        return scores


def _of_grey(
    function: Callable, tokens: Int[np.ndarray, "m length"], image: ImageTransform, batch_size: int, mesh: Mesh
) -> Float[np.ndarray, "m"]:
    """log p of every text given an image of middle grey."""

    def of(text):
        mine = meshes.local_rows(mesh, len(text))
        grey = np.full((len(mine), *image.blank.shape), GREY, np.uint8)
        return function(meshes.put({"image": grey}, mine, len(text), mesh)["image"], text)

    return embed_rows(of, tokens, batch_size, mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodZeroShot(_ByLikelihood, ZeroShot):
    """`ZeroShot` by likelihood: the class whose prompt the model would most likely write about the image.

    A class with several prompts is as likely as they are on average. `ece` is that of the softmax over the classes'
    scores. Images times prompts passes are made: for many classes take a small source.
    """

    def scores(self, predict: Predict, mesh: Mesh, more: Mapping[str, tuple[int, ...]]) -> Embedded:
        prompts = [template.format(name) for name in self.names for template in self.prompts]
        every = np.arange(len(prompts))
        found = self.with_class(self.likelihoods(predict, mesh, lambda record: every, self.text(prompts), more))
        by_prompt = found.vectors.reshape(len(found.vectors), len(self.names), len(self.prompts))
        mean = np.logaddexp.reduce(by_prompt, axis=2) - np.log(len(self.prompts))
        return dataclasses.replace(found, vectors=mean)

    def scale(self, predict: Predict, mesh: Mesh) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodChoose(_ByLikelihood, Choose):
    """`Choose` by likelihood: how often the right caption is likelier than every wrong one; a tie is wrong."""

    def scored(self, predict: Predict, mesh: Mesh) -> list[Scored]:
        mine = [
            list(dict.fromkeys(text for choice in self.source.choices(record) for text in choice.texts))
            for record in range(len(self.source))
        ]
        most = max(1, *map(len, mine))
        texts = sorted({text for of_record in mine for text in of_record}) or [""]
        place = {text: k for k, text in enumerate(texts)}
        # Batches are of one shape: a record with fewer texts is asked for its first one again.
        rows = np.array([[place[t] for t in (of + (of or texts)[:1] * most)[:most]] for of in mine])
        found = self.likelihoods(predict, mesh, lambda record: rows[record], self.text(texts))
        return [
            (record, choice, found.vectors[row, [mine[record].index(text) for text in choice.texts]])
            for row, record, choice in self.cases(found.columns["index"])
        ]
