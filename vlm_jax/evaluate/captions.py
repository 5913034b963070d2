"""Captions that a model writes, against those of people: CIDEr-D, BLEU-4, ROUGE-L, exact match."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from vlm_jax.data.image import ImageTransform, open_image
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.base import Evaluator, Predict, Result, embed_source
from vlm_jax.evaluate.text_metrics.bleu import bleu
from vlm_jax.evaluate.text_metrics.cider import cider_d
from vlm_jax.evaluate.text_metrics.rouge import rouge_l
from vlm_jax.evaluate.text_metrics.tokens import ptb_tokens
from vlm_jax.report.artifacts import Gallery

SIDE = 160  # pixels of a picture in the report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions(Evaluator):
    """Scores of the captions that the model writes for a source's images; their own are the references.

    Args:
      text: reads what the model writes, and makes both texts canonical before they are held to be the same.
      shown: pictures of a row in the report.
    """

    source: Any
    image: ImageTransform
    text: Text
    shown: int = 12

    def __call__(self, predict: Predict, mesh: Mesh) -> Result:
        """`cider_d`, `bleu4` and `rouge_l` of tokens (see `ptb_tokens`), `exact_match` with any reference, `examples`.

        They are fractions, but for CIDEr-D, which is up to 10; the literature multiplies all by 100.
        """
        if "generate" not in predict:
            raise UserError(f"Captions: the model gives no 'generate'; {closest('generate', predict)}")
        found = embed_source(predict["generate"], self.source, self.image, self.batch_size, mesh)
        records = found.columns["index"]
        # What is generated comes after the begin token.
        written = dataclasses.replace(self.text, bos=False, pad_side="right").decode(found.vectors)
        references = [self._references(record) for record in records.tolist()]
        candidates = [ptb_tokens(caption) for caption in written]
        tokens = [[ptb_tokens(caption) for caption in others] for others in references]
        rows = {
            "index": records,
            "exact_match": self._same(written, references),
            "cider_d": cider_d(candidates, tokens),
            "rouge_l": np.array([rouge_l(*pair) for pair in zip(candidates, tokens)]),
            "truth": np.array([others[0] for others in references]),
            "answer": np.array(written),
        }
        metrics = {name: float(rows[name].mean()) for name in ("cider_d", "rouge_l", "exact_match")}
        metrics |= {"bleu4": bleu(candidates, tokens)[3], "examples": float(len(records))}
        return Result(metrics, {"captions": self._gallery(rows)}, {"captions": rows})

    def _references(self, record: int) -> list[str]:
        texts = self.source[record]["text"]
        return [texts] if isinstance(texts, str) else list(texts)

    def _same(self, written: list[str], references: list[list[str]]) -> Bool[np.ndarray, "n"]:
        canonical = self.text.canonical
        return np.array([canonical(w) in map(canonical, others) for w, others in zip(written, references)])

    def _gallery(self, rows: dict[str, np.ndarray]) -> Gallery:
        """The first images of both kinds, each with what the model wrote and the first reference."""
        out = []
        for good, heading in ((True, "as one of the references"), (False, "as none of them")):
            chosen = np.flatnonzero(rows["exact_match"] == good)
            pictures = [
                (
                    np.asarray(open_image(self.source[int(rows["index"][k])]["image"], SIDE)),
                    f"{rows['answer'][k]} (reference: {rows['truth'][k]})",
                    good,
                )
                for k in chosen[: self.shown].tolist()
            ]
            if pictures:
                out.append((f"{heading}: {len(chosen):,} of {len(rows['index']):,}", pictures))
        return Gallery("captions written", out)
