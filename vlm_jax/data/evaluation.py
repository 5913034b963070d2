"""Batches of a whole source in its order, for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.stream import stream
from vlm_jax.data.text import Text, caption_ids
from vlm_jax.redact import hidden


def evaluation_batches(
    source: Any,
    image: ImageTransform,
    text: Text | None = None,
    *,
    batch_size: int,
    rows: np.ndarray,
    cache: dict[int, Example] | None = None,
    more: Mapping[str, tuple[int, ...]] | None = None,
    threads: int = 4,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a whole source in its order, for evaluation: no shuffling, no augmentation, first captions.

    Every process gets ceil(len(source) / batch_size) batches. Row r of batch k is record k * batch_size + r.

    Args:
      rows: the rows of the global batch that this process holds.
      cache: a dict that the caller keeps, to decode every image once over several evaluations.
      more: other entries of the records, integers, and the shape of each.

    Yields:
      `image` uint8 [b, H, W, 3] (or `image/NAME`, see `ImageTransform.batch`), `index` int32 [b], `mask` bool [b], with
      text `text` and `caption_id`, and `label` where the source has class names, and what `more` names, int32 [b, ...].
      Rows past the end, and unreadable records, are zeros with `mask` False and `label` -1.
    """
    more = dict(more or {})
    read, length = Reader(source, image, text is not None, cache, more=tuple(more)), len(source)
    steps = -(-length // batch_size)
    nothing = Example(image.blank, ("",), -1, tuple(np.zeros(shape, np.int32) for shape in more.values()))

    def load(step: int, rows: np.ndarray):
        indices = step * batch_size + rows
        mask = indices < length
        examples = []
        for i, index in enumerate(indices.tolist()):
            example = nothing
            if mask[i]:
                try:
                    example = read(index)
                except UnreadableRecord as error:
                    logging.warning("evaluation leaves out %s", hidden(str(error)))
                    mask[i] = False
            examples.append(example)
        pixels = image.batch([e.image for e in examples])
        batch = {f"image/{k}": v for k, v in pixels.items()} if isinstance(pixels, dict) else {"image": pixels}
        batch |= {"index": np.where(mask, indices, 0).astype(np.int32), "mask": mask}
        if text is not None:
            batch["text"] = text([e.texts[0] for e in examples])
            batch["caption_id"] = caption_ids(batch["text"])
        if source.class_names:
            batch["label"] = np.array([e.label for e in examples], np.int32)
        batch |= {name: np.array([e.more[k] for e in examples], np.int32) for k, name in enumerate(more)}
        return batch, []

    batches = stream(load, rows=np.asarray(rows, np.int64), threads=threads, prefetch=prefetch, steps=steps)
    try:
        for batch, _ in batches:
            yield batch
    finally:
        batches.close()
