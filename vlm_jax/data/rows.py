"""Rows of training batches from global example indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_jax.data.apportion import Apportionment
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.order import permutation
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.text import caption_ids
from vlm_jax.errors import UserError

if TYPE_CHECKING:
    from vlm_jax.data.pipeline import Pipeline

# So many unreadable records in a row are a wrong source, not damage.
MOST_UNREADABLE = 1000


class Rows:
    """Makes the rows of any global example indices: reads, decodes, augments, tokenizes. It pickles."""

    reader = Reader

    def __init__(self, pipeline: Pipeline, seed: int, apportionment: Apportionment):
        self._pipeline, self._seed, self.apportionment = pipeline, seed, apportionment
        self._with_label = bool(pipeline.source.class_names)
        self._parts = [
            _PartReader(name, part, pipeline, seed, self.reader, alone=len(pipeline.parts) == 1)
            for name, part in pipeline.parts.items()
        ]

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of one row and type of each array."""
        pipeline = self._pipeline
        spec = {"image": ((pipeline.image.size, pipeline.image.size, 3), "uint8"), "example_id": ((2,), "uint32")}
        if pipeline.text is not None:
            spec |= {"text": ((pipeline.text.length,), "int32"), "caption_id": ((), "int32")}
        if self._with_label:
            spec["label"] = ((), "int32")
        return spec

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        """The rows, and place, source, key and reason of each one whose own record was unreadable."""
        generator = RowGenerator(self._seed)
        images, captions, labels, drawn, unreadable = [], [], [], [], []
        for at, (index, (part, example, failure)) in enumerate(zip(indices.tolist(), self.examples(indices))):
            if failure is not None:
                unreadable.append((at, part.name, *failure))
            rng = generator(index)
            if self._pipeline.text is not None:
                captions.append(part.choose(example.texts, rng.random()))
            images.append(part.augment(example.image, rng))
            labels.append(example.label if part.labelled else -1)
            drawn.append(self._drawn(example, rng))
        batch = {**self._stack(images), **self._also(drawn), "example_id": halves(indices)}
        if self._pipeline.text is not None:
            batch["text"] = self._pipeline.text(captions)
            batch["caption_id"] = caption_ids(batch["text"])
        if self._with_label:
            batch["label"] = np.array(labels, np.int32)
        return batch, unreadable

    def _stack(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        return {"image": np.stack(images)}

    def _drawn(self, example: Example, rng: np.random.Generator) -> Any:
        """What else a subclass takes of an example."""

    def _also(self, drawn: list[Any]) -> dict[str, np.ndarray]:
        """What it makes of all of them."""
        return {}

    def examples(self, indices: np.ndarray) -> Iterator[tuple[_PartReader, Example, tuple[str, str] | None]]:
        """Of each example its source, itself, and key and reason where its own record was unreadable."""
        sources, turns = self.apportionment(indices)
        records = np.empty_like(turns)
        for source in np.unique(sources):
            records[sources == source] = self._parts[source].records(turns[sources == source])
        for source, turn, record in zip(sources.tolist(), turns.tolist(), records.tolist()):
            yield self._parts[source], *self._parts[source](turn, record)


class _PartReader:
    """Examples of one source by their turn: turn t is position `t mod length` of the order of epoch `t div length`."""

    def __init__(self, name, part, pipeline, seed, reader, alone):
        image = part.image or pipeline.image
        layout = pipeline.packing or pipeline.tiles or pipeline.conversations
        image = image if layout is None else layout.transform(image)
        self.name, self.choose, self.augment = name, part.choose, image.augment
        self.labelled = bool(part.source.class_names)
        self._source, self._seed, self._shuffle, self._alone = part.source, seed, pipeline.shuffle, alone
        self._length = len(part.source)
        self._read = reader(
            part.source,
            image.decode_resize,
            needs_text=pipeline.text is not None,
            templates=part.templates,
            cache={} if pipeline.cache else None,
        )

    def records(self, turns: np.ndarray) -> np.ndarray:
        """Indices into the source."""
        epochs, positions = np.divmod(turns, self._length)
        if not self._shuffle:
            return positions
        records = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = permutation(self._length, seed=self._seed, name=self.name, epoch=int(epoch))
            records[epochs == epoch] = order(positions[epochs == epoch])
        return records

    def __call__(self, turn: int, record: int) -> tuple[Example, tuple[str, str] | None]:
        """The example of a turn, or of the next readable record of its epoch; then key and reason of its own."""
        try:
            return self._read(record), None
        except UnreadableRecord as error:  # kept, it would keep the frames it came through, and whole batches in them
            first = error.key, error.why
        epoch, position = divmod(turn, self._length)
        tries = min(self._length, MOST_UNREADABLE)
        for step in range(1, tries):
            following = self.records(np.array([epoch * self._length + (position + step) % self._length]))
            try:
                return self._read(int(following[0])), first
            except UnreadableRecord:
                continue
        where = f"source {self._source.name!r}" + ("" if self._alone else f" of {self.name!r} in the mixture")
        raise UserError(f"{where}: {tries} records in a row are unreadable, the first is {first[0]}: {first[1]}.")


class RowGenerator:
    """`Generator(Philox(key=(seed, index)))`, one that is set anew for each index: making one costs ten times more."""

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=[seed % 2**64, 0])
        self._state = self._bits.state
        self._rng = np.random.Generator(self._bits)

    def __call__(self, index: int) -> np.random.Generator:
        self._state["state"]["key"][1] = index
        self._bits.state = self._state
        return self._rng


def halves(indices: np.ndarray) -> np.ndarray:
    """High and low 32 bits of global example indices: [b, 2] uint32."""
    return np.stack([indices >> 32, indices & 0xFFFFFFFF], axis=1).astype(np.uint32)
