"""COCO and Flickr30k with their captions, in Karpathy's splits (Karpathy & Fei-Fei 2015)."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.readers.base import Annotated, checked, checked_list, checked_object, load_json


@dataclasses.dataclass(frozen=True)
class Karpathy(Annotated):
    """`path` is `dataset_coco.json` or `dataset_flickr30k.json`, `images` the folder where the names in it begin.

    The file holds `images`, each with `filename`, `filepath` (COCO: "val2014"), `split` and `sentences`, whose `raw`
    are the captions. The usual test sets are 5,000 images of COCO and 1,000 of Flickr30k; retrieval takes five captions
    an image (`Retrieval(captions=5)`).

    Attributes:
      split: "train", "restval" (COCO), "val" or "test".
    """

    split: str = "test"

    KIND: ClassVar[str] = "karpathy"

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser()]

    @functools.cached_property
    def _images(self) -> list[tuple[str, list[str]]]:
        kinds = dict(filename=str, split=str, sentences=list)
        entries = checked_list(checked_object(load_json(self.path), self.path).get("images"), f"{self.path}: images")
        found, splits = [], Counter()
        for number, entry in enumerate(entries):
            where = f"{self.path}, image {number},"
            splits[checked(entry, kinds, where)["split"]] += 1
            if entry["split"] == self.split:
                captions = [checked(sentence, dict(raw=str), where)["raw"] for sentence in entry["sentences"]]
                found.append(("/".join(filter(None, (entry.get("filepath"), entry["filename"]))), captions))
        if self.split not in splits:
            raise UserError(f"Karpathy.split={self.split!r}: {closest(self.split, splits)}")
        return found

    def __len__(self) -> int:
        return len(self._images)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._images[index][0]}"

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `text` all captions."""
        return {"image": self.image(index), "text": list(self._images[index][1])}

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`."""
        return islice((caption for _, captions in self._images for caption in captions), limit)
