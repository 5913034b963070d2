"""Batches that are a pure function of (seed, global example index), however rows are split and runs restarted."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.order import permutation
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.stream import stream
from vlm_jax.data.text import Text, caption_ids
from vlm_jax.errors import UserError

# So many unreadable records in a row are a wrong source, not damage.
MOST_UNREADABLE = 1000
# Unreadable records that are named in the report.
NAMED = 10


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Shuffled, decoded, augmented and tokenized batches of one source.

    Global example g is record `order(epoch)[position]` of the source, with `epoch, position = divmod(g, len(source))`
    and `order` a permutation of (seed, source name, epoch); caption and augmentation are drawn from the generator
    Philox(key=(seed, g)). A record that is unreadable is replaced by the next readable one of the epoch's order (after
    the last comes the first), which shifts no other row.

    Attributes:
      source: random access: `len(source)`, `source[i] -> dict`, `name`, `fingerprint`, `class_names`.
      image: the image transform.
      text: the tokens, or None for images without text.
      cache: keep what was decoded and resized in memory.
      threads: threads that decode; 0 prepares batches when they are asked for.
      prefetch: batches prepared ahead.
      shuffle: False takes the source in its own order, every epoch.
    """

    source: Any
    image: ImageTransform
    text: Text | None = None
    cache: bool = False
    threads: int = 4
    prefetch: int = 2
    shuffle: bool = True

    def __post_init__(self):
        self.validate()

    def validate(self):
        for name in ("threads", "prefetch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative.")

    def describe(self) -> list[dict]:
        """What the data is, for the state of a checkpoint."""
        source = self.source
        return [{"name": source.name, "length": len(source), "weight": 1.0, "fingerprint": source.fingerprint}]

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        rows: np.ndarray,
        next_index: int = 0,
        state: dict | None = None,
        allow_change: bool = False,
        overfit_batches: int | None = None,
        counted: np.ndarray | None = None,
    ) -> Batches:
        """Batches from `next_index` on, without end.

        Args:
          seed: of order, captions and augmentation.
          batch_size: rows of the global batch.
          rows: the rows of it, in range(batch_size) and in any order, that this process holds.
          next_index: the global example index of row 0 of the first batch.
          state: what `Batches.state` gave, to go on from there; `next_index` is then the state's.
          allow_change: go on with the state although the data is not what it was.
          overfit_batches: repeat the first so many batches for ever.
          counted: the rows whose unreadable records this process counts, all of `rows` unless given; where several
            processes hold a row, one of them counts it.

        Raises:
          UserError: the source is empty, or is not the one that the state describes.
        """
        if len(self.source) == 0:
            raise UserError(f"source {self.source.name!r} is empty.")
        rows = np.asarray(rows, np.int64)
        if rows.size == 0 or rows.min() < 0 or rows.max() >= batch_size:
            raise ValueError(f"rows must be some of range({batch_size})")
        if state is not None:
            changes = _changes(state, {"seed": seed, "sources": self.describe()})
            if changes and not allow_change:
                raise UserError(
                    f"the data is not what this run began with: {'; '.join(changes)}; "
                    "give it the same data, or --allow_config_change to go on with the changed data."
                )
            next_index = state["next_index"]
        counted = rows if counted is None else counted
        return Batches(self, seed, batch_size, rows, next_index, state or {}, overfit_batches, counted)


class Batches:
    """An iterator over the batches of a pipeline; close it at the end.

    A batch is a dict of arrays with one entry for each of the process' rows: `image` uint8 [b, H, W, 3], `example_id`
    uint32 [b, 2] (high and low half of the global example index), with text `text` int32 [b, L] and `caption_id` int32
    [b] (equal for equal rows of text), and `label` int32 [b] (-1 where a record has none) where the source has class
    names.
    """

    def __init__(self, pipeline, seed, batch_size, rows, next_index, state, overfit_batches, counted):
        self._pipeline, self._seed, self._batch_size = pipeline, seed, batch_size
        self._next_index = next_index
        self._unreadable = state.get("unreadable", 0)
        self._unreadable_first = [tuple(named) for named in state.get("unreadable_first", ())]
        self._news: list[tuple[int, str, str]] = []
        self._waited = 0.0
        period = batch_size * overfit_batches if overfit_batches else None
        maker = _Maker(pipeline, seed)

        def load(step: int, rows: np.ndarray):
            indices = next_index + step * batch_size + rows
            batch, unreadable = maker(indices % period if period else indices)
            own = np.isin(rows, counted)
            return batch, [(int(indices[at]), key, why) for at, key, why in unreadable if own[at]]

        self._stream = stream(load, rows=rows, threads=pipeline.threads, prefetch=pipeline.prefetch)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        try:
            batch, unreadable = next(self._stream)
        except BaseException:
            self.close()  # the part that failed is lost, so that what follows would be misaligned
            raise
        self._waited += time.perf_counter() - start
        self._next_index += self._batch_size
        self._news += unreadable
        return batch

    @property
    def unreadable(self) -> int:
        """Rows of all batches given out from the run's begin to the last `state` whose own record was unreadable."""
        return self._unreadable

    @property
    def unreadable_first(self) -> list[tuple[str, str]]:
        """The first unreadable records, as of the last `state`: key and reason."""
        return list(self._unreadable_first)

    def state(self, gather: Callable[[Any], list[Any]] = lambda mine: [mine]) -> dict:
        """Where the next batch begins, and in what data, as JSON, the same on every process.

        Args:
          gather: gives the values (JSON) of all processes for this one's; what was unreadable since the last call is
            added up with it, so that all processes call this equally often.
        """
        news, self._news = self._news, []
        told = gather([len(news), _distinct(news)])
        self._unreadable += sum(count for count, _ in told)
        known = [(-1, *named) for named in self._unreadable_first]
        added = sorted(tuple(named) for _, part in told for named in part)
        self._unreadable_first = [(key, why) for _, key, why in _distinct([*known, *added])]
        return {
            "next_index": self._next_index,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "sources": self._pipeline.describe(),
            "unreadable": self._unreadable,
            "unreadable_first": [list(named) for named in self._unreadable_first],
        }

    def wait_seconds(self) -> float:
        """Seconds that the caller has waited for batches since it last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the threads; whatever they have prepared is dropped."""
        self._stream.close()


class _Maker:
    """Makes rows of training batches from global example indices."""

    def __init__(self, pipeline: Pipeline, seed: int):
        self._pipeline, self._seed = pipeline, seed
        self._read = Reader(
            pipeline.source,
            pipeline.image.decode_resize,
            needs_text=pipeline.text is not None,
            cache={} if pipeline.cache else None,
        )
        self._length = len(pipeline.source)
        self._with_label = bool(pipeline.source.class_names)

    def __call__(self, indices: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str]]]:
        """Rows of a batch, and place, key and reason of each one whose own record was unreadable."""
        pipeline, generator = self._pipeline, _Generator(self._seed)
        images, captions, labels, unreadable = [], [], [], []
        for at, (index, record) in enumerate(zip(indices.tolist(), self._records(indices).tolist())):
            example, failure = self._readable(index, record)
            if failure is not None:
                unreadable.append((at, failure.key, failure.why))
            rng = generator(index)
            if pipeline.text is not None:
                captions.append(example.texts[int(rng.random() * len(example.texts))])
            images.append(pipeline.image.augment(example.image, rng))
            labels.append(example.label)
        batch = {"image": np.stack(images), "example_id": _halves(indices)}
        if pipeline.text is not None:
            batch["text"] = pipeline.text(captions)
            batch["caption_id"] = caption_ids(batch["text"])
        if self._with_label:
            batch["label"] = np.array(labels, np.int32)
        return batch, unreadable

    def _records(self, indices: np.ndarray) -> np.ndarray:
        """Indices into the source of global example indices."""
        epochs, positions = np.divmod(indices, self._length)
        if not self._pipeline.shuffle:
            return positions
        records = np.empty_like(positions)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            records[of_epoch] = self._order(int(epoch))(positions[of_epoch])
        return records

    def _order(self, epoch: int):
        return permutation(self._length, seed=self._seed, name=self._pipeline.source.name, epoch=epoch)

    def _readable(self, index: int, record: int) -> tuple[Example, UnreadableRecord | None]:
        """The example of a record, or of the next readable one, and why it is not the record's own."""
        try:
            return self._read(record), None
        except UnreadableRecord as error:
            first = error
        epoch, position = divmod(index, self._length)
        tries = min(self._length, MOST_UNREADABLE)
        for step in range(1, tries):
            following = self._records(np.array([epoch * self._length + (position + step) % self._length]))
            try:
                return self._read(int(following[0])), first
            except UnreadableRecord:
                continue
        raise UserError(
            f"source {self._pipeline.source.name!r}: {tries} records in a row are unreadable, "
            f"the first is {first.key}: {first.why}."
        )


class _Generator:
    """`Generator(Philox(key=(seed, index)))`, one that is set anew for each index: making one costs ten times more."""

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=[seed % 2**64, 0])
        self._state = self._bits.state
        self._rng = np.random.Generator(self._bits)

    def __call__(self, index: int) -> np.random.Generator:
        self._state["state"]["key"][1] = index
        self._bits.state = self._state
        return self._rng


def _halves(indices: np.ndarray) -> np.ndarray:
    """High and low 32 bits of global example indices: [b, 2] uint32."""
    return np.stack([indices >> 32, indices & 0xFFFFFFFF], axis=1).astype(np.uint32)


def _distinct(unreadable: Iterable[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The first of them, each record once."""
    found: dict[tuple[str, str], tuple[int, str, str]] = {}
    for index, key, why in unreadable:
        if len(found) < NAMED:
            found.setdefault((key, why), (index, key, why))
    return list(found.values())


def _changes(before: dict, now: dict) -> list[str]:
    """What differs between two descriptions of the data, one phrase a difference."""
    pairs = [("seed", before["seed"], now["seed"])]
    if len(before["sources"]) != len(now["sources"]):
        pairs.append(("sources", len(before["sources"]), len(now["sources"])))
    for old, new in zip(before["sources"], now["sources"]):
        pairs += [(f"{old['name']}.{key}", old[key], new[key]) for key in new]
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def evaluation_batches(
    source: Any,
    image: ImageTransform,
    text: Text | None = None,
    *,
    batch_size: int,
    rows: np.ndarray,
    cache: dict[int, Example] | None = None,
    threads: int = 4,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a whole source in its order, for evaluation: no shuffling, no augmentation, first captions.

    Every process gets ceil(len(source) / batch_size) batches. Row r of batch k is record k * batch_size + r.

    Args:
      rows: the rows of the global batch that this process holds.
      cache: a dict that the caller keeps, to decode every image once over several evaluations.

    Yields:
      `image` uint8 [b, H, W, 3], `index` int32 [b], `mask` bool [b], with text `text` and `caption_id`, and `label`
      where the source has class names. Rows past the end, and unreadable records, are zeros with `mask` False and
      `label` -1.
    """
    read, length = Reader(source, image, text is not None, cache), len(source)
    steps = -(-length // batch_size)
    nothing = Example(np.zeros((image.size, image.size, 3), np.uint8), ("",), -1)

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
                    logging.warning("evaluation leaves out %s", error)
                    mask[i] = False
            examples.append(example)
        batch = {
            "image": np.stack([e.image for e in examples]),
            "index": np.where(mask, indices, 0).astype(np.int32),
            "mask": mask,
        }
        if text is not None:
            batch["text"] = text([e.texts[0] for e in examples])
            batch["caption_id"] = caption_ids(batch["text"])
        if source.class_names:
            batch["label"] = np.array([e.label for e in examples], np.int32)
        return batch, []

    batches = stream(load, rows=np.asarray(rows, np.int64), threads=threads, prefetch=prefetch, steps=steps)
    try:
        for batch, _ in batches:
            yield batch
    finally:
        batches.close()
