"""Scores of images and captions by a trained model: the cosine of their embeddings, from a workdir alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, UInt8

from vlm_jax import config as configs
from vlm_jax import mesh as meshes
from vlm_jax import tree
from vlm_jax.checkpoint import load_params
from vlm_jax.errors import UserError
from vlm_jax.evaluate.base import embed_rows


class Scorer:
    """The model of a workdir, on all devices of this machine, each with a copy of it.

    Attributes:
      image: the transform of the run's images, as evaluation applies it.
      step: of the checkpoint.
    """

    def __init__(self, workdir: str | Path, weights: Literal["params", "ema"] = "params", batch_size: int = 256):
        """Loads the last good checkpoint; the data of the run need not be here.

        Raises: UserError where the workdir has none, or its model gives no embeddings of images and texts.
        """
        if not configs.is_workdir(str(workdir)):
            raise UserError(f"--workdir={workdir} is no workdir: it has no config.json.")
        config = configs.load(str(workdir))
        if config.get("text") is None:
            raise UserError(f"--workdir={workdir}: its model reads no text, so that captions have no score.")
        text = configs.build(config.text, tokenizer=config.get("tokenizer", "bytes"))
        text = text.resolve(_no_captions, Path(workdir) / "assets")
        late = {"image": configs.build(config.image), "text": text, "tokenizer": text.tokenizer}
        late |= {"vocab_size": text.vocab_size, "pad_id": text.pad_id, "eos_id": text.eos_id}
        if config.get("packing") is not None:
            late["packing"] = configs.build(config.packing)
        task = configs.build(config.task, **late)
        params, meta = load_params(workdir, weights)
        self.image, self.step, self._text, self._batch_size = late["image"], meta["step"], text, batch_size
        self._mesh = meshes.Layout().make(jax.devices())
        params = jax.device_put(tree.stack(params, task.stacks), meshes.replicated(self._mesh))
        self._predict = task.predict({"params": params, "state": {}})
        missing = {"image_embedding", "text_embedding"} - set(self._predict)
        if missing:
            raise UserError(f"--workdir={workdir}: its task gives no {' and no '.join(sorted(missing))}.")

    def __call__(
        self, images: UInt8[np.ndarray, "n s s 3"], captions: Sequence[Sequence[str]]
    ) -> Float[np.ndarray, "n"]:
        """For each image the cosine with its best caption, of which there is at least one."""
        owner = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
        rows = self._text([text for texts in captions for text in texts])
        pictures = embed_rows(self._predict["image_embedding"], images, self._batch_size, self._mesh)
        texts = embed_rows(self._predict["text_embedding"], rows, self._batch_size, self._mesh)
        best = np.full(len(images), -np.inf, np.float32)
        np.maximum.at(best, owner, (pictures[owner] * texts).sum(-1))
        return best


def _no_captions(limit: int):
    raise UserError("the workdir has lost the tokenizer that was trained for it (assets/); bring the folder back.")
