"""Batches that are a pure function of (seed, global example index), however rows are split and runs restarted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vlm_jax.data import state as data_state
from vlm_jax.data.apportion import Apportionment
from vlm_jax.data.documents import Documents
from vlm_jax.data.documents_rows import DocumentRows
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.packing_rows import PackedRows
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.rows import Rows
from vlm_jax.data.stream import stream
from vlm_jax.data.text import Text, caption_ids
from vlm_jax.data.tiles import Tiles
from vlm_jax.data.tiles_rows import TiledRows
from vlm_jax.data.workers import WorkerStream
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Shuffled, decoded, augmented and tokenized batches of a source, or of a mixture of them.

    Row g of the run belongs to a source (the only one, or the one that the mixture says), which has had t rows before
    it: it is record `order(epoch)[position]` of that source, with `epoch, position = divmod(t, len(source))` and
    `order` a permutation of (seed, source name, epoch). Caption and augmentation are drawn from the generator
    Philox(key=(seed, g)). A record that is unreadable is replaced by the next readable one of the epoch's order (after
    the last comes the first), which shifts no other row.

    Attributes:
      source: random access: `len(source)`, `source[i] -> dict`, `name`, `fingerprint`, `class_names`; or a `Mixture`.
        What it left out as damaged, if anything, are its `problems`, (file, key, reason), and `problem_count`.
      image: the image transform.
      text: the tokens, or None for images without text.
      cache: keep what was decoded and resized in memory, each worker for itself.
      workers: processes that prepare batches; 0 does it in this one. Their number changes no batch.
      threads: threads that decode, in each worker where there are any; 0 prepares batches when they are asked for.
      prefetch: batches prepared ahead.
      shuffle: False takes each source in its own order, every epoch.
      packing: puts several images, at their own aspect ratio, into a row, and what is said above of row g holds of
        example g. None: a row is an example.
      tiles: cuts images into tiles of `image.size`, with a thumbnail; see `vlm_jax.data.tiles_rows` for the batch.
      documents: rows hold documents of texts and images (`data.sources.interleaved.Interleaved`), or pairs as such.
    """

    source: Any
    image: ImageTransform
    text: Text | None = None
    cache: bool = False
    workers: int = 0
    threads: int = 4
    prefetch: int = 2
    shuffle: bool = True
    packing: Packing | None = None
    tiles: Tiles | None = None
    documents: Documents | None = None

    def __post_init__(self):
        self.validate()

    def validate(self):
        for name in ("workers", "threads", "prefetch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative.")
        for name, part in self.parts.items():
            if part.image is not None and part.image.size != self.image.size:
                raise UserError(
                    f"Mixture.parts.{name}.image.size={part.image.size}, batches have images of {self.image.size}; "
                    "set both to one value."
                )

        layouts = [name for name in ("packing", "tiles", "documents") if getattr(self, name) is not None]
        if len(layouts) > 1:
            raise UserError(f"Pipeline.{' and '.join(layouts)} say each what a row holds; set one of them.")
        if self.documents is not None:
            self.documents.check(self.text)
        if (layout := self.packing or self.tiles) is not None:
            for part in self.parts.values():
                layout.transform(part.image or self.image)
        if self.packing is None:
            if self.image.resize == "naflex":
                raise UserError("ImageTransform.resize='naflex' gives images of many sizes: train on them packed.")
            return
        if self.text is not None and self.packing.text_tokens < self.text.length:
            raise UserError(
                f"Packing.text_tokens={self.packing.text_tokens} is less than a text of length={self.text.length}; "
                "raise it."
            )

    @property
    def parts(self) -> Mapping[str, Part]:
        """The parts of the mixture; one source is a mixture of one."""
        return self.source.parts if isinstance(self.source, Mixture) else {self.source.name: Part(self.source)}

    @property
    def damaged(self) -> int:
        """Files and members that sources left out as they were opened, where they are told to (`damaged="skip"`)."""
        return sum(getattr(part.source, "problem_count", 0) for part in self.parts.values())

    @property
    def damage(self) -> list[str]:
        """The first of them: "FILE:KEY: REASON"."""
        found = (problem for part in self.parts.values() for problem in getattr(part.source, "problems", ()))
        return [
            f"{file}{':' if key else ''}{key}: {why}" for file, key, why in itertools.islice(found, data_state.NAMED)
        ]

    @property
    def _rows(self) -> type[Rows]:
        if self.packing is not None:
            return PackedRows
        if self.tiles is not None:
            return TiledRows
        return Rows if self.documents is None else DocumentRows

    def describe(self) -> list[dict]:
        """What the data is, for the state of a checkpoint."""
        return [
            {
                "name": name,
                "length": len(part.source),
                "weight": part.weight,
                "fingerprint": part.source.fingerprint,
            }
            for name, part in self.parts.items()
        ]

    def describe_packing(self) -> dict | None:
        """How it is packed, for the state of a checkpoint."""
        return None if self.packing is None else json.loads(json.dumps(dataclasses.asdict(self.packing)))

    def first_example(self, row: int) -> int:
        """The index of the first example in the row, or in the packed window that it begins."""
        return row if self.packing is None else row // self.packing.rows * self.packing.examples

    def first_row(self, example: int) -> int:
        """The row that holds the example, or the first of its packed window."""
        return example if self.packing is None else example // self.packing.examples * self.packing.rows

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
          allow_change: go on with the state although the data is not what it was: each source of a mixture goes on
            where it stood, by its name, and a new one begins.
          overfit_batches: repeat for ever the first so many batches, of changed data since they did.
          counted: the rows whose unreadable records this process counts, all of `rows` unless given; where several
            processes hold a row, one of them counts it.

        Raises:
          UserError: a source is empty, or is not what the state describes.
        """
        if len(self.source) == 0:
            raise UserError(f"source {self.source.name!r} is empty.")
        rows = np.asarray(rows, np.int64)
        if rows.size == 0 or rows.min() < 0 or rows.max() >= batch_size:
            raise ValueError(f"rows must be some of range({batch_size})")
        if self.packing is not None and batch_size % self.packing.rows:
            raise UserError(f"batch_size={batch_size} is not a multiple of Packing.rows={self.packing.rows}.")
        origin = None
        if state is not None:
            state = data_state.complete(state)
            now = {"seed": seed, "sources": self.describe(), "packing": self.describe_packing()}
            if (was := data_state.window(state)) != (is_now := data_state.window(now)):
                raise UserError(
                    f"Packing.examples in Packing.rows was {was}, is {is_now}: they say where in the data a run is, "
                    "and cannot change; begin another from its parameters (config.init_from)."
                )
            changes = data_state.changes(state, now)
            if changes and not allow_change:
                raise UserError(
                    f"the data is not what this run began with: {'; '.join(changes)}; "
                    "give it the same data, or --allow_config_change to go on with the changed data."
                )
            next_index = state["next_index"]
            origin = data_state.origin(state, now, self.first_example(next_index)) if changes else state["origin"]
        options = {}
        if origin is not None:
            options = {"begin": origin["index"], "already": tuple(origin["rows"][name] for name in self.parts)}
        weights = tuple(part.weight for part in self.parts.values())
        apportionment = Apportionment(tuple(self.parts), weights, seed, **options)
        counted = rows if counted is None else counted
        make = self._rows(self, seed, apportionment)
        repeat = (self.first_row(apportionment.begin), batch_size * overfit_batches) if overfit_batches else None
        load = _Load(make, next_index, batch_size, repeat, counted)
        return Batches(self, seed, load, rows, state or {})


@dataclasses.dataclass(frozen=True)
class _Load:
    """Rows of a step, and what is unreadable of them: index, source, key, reason.

    Where there is `repeat`, (first, count), its `count` rows from `first` on come again and again.
    """

    make: Rows
    next_index: int
    batch_size: int
    repeat: tuple[int, int] | None
    counted: np.ndarray

    def __call__(self, step: int, rows: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[int, str, str, str]]]:
        indices = self.next_index + step * self.batch_size + rows
        made = indices
        if self.repeat is not None:
            first, count = self.repeat
            made = first + (indices - first) % count
        batch, unreadable = self.make(made)
        own = np.isin(rows, self.counted)
        return batch, [(int(indices[at]), *what) for at, *what in unreadable if own[at]]


class Batches:
    """An iterator over the batches of a pipeline; close it at the end.

    A batch is a dict of arrays with one entry for each of the process' rows: `image` uint8 [b, H, W, 3], `example_id`
    uint32 [b, 2] (high and low half of the global example index), with text `text` int32 [b, L] and `caption_id` int32
    [b] (equal for equal rows of text), and `label` int32 [b] (-1 where a record has none) where the source has class
    names. Packed batches have what `Packing.spec` says, and `example_id` [b, images, 2]; tiled ones `image` [b, tiles,
    H, W, 3] and what `TiledRows` says; documents what `Documents.spec` says.
    """

    def __init__(self, pipeline: Pipeline, seed: int, load: _Load, rows: np.ndarray, state: dict):
        self._pipeline, self._seed, self._batch_size = pipeline, seed, load.batch_size
        self._next_index, self._apportionment = load.next_index, load.make.apportionment
        self._tally = data_state.Tally(list(pipeline.parts), state)
        self._waited = 0.0
        options = dict(rows=rows, threads=pipeline.threads, prefetch=pipeline.prefetch)
        if pipeline.workers:
            self._stream = WorkerStream(load, spec=load.make.spec, workers=pipeline.workers, **options)
        else:
            self._stream = stream(load, **options)

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
        self._tally.add(unreadable)
        return batch

    @property
    def unreadable(self) -> int:
        """Rows of all batches given out from the run's begin to the last `state` whose own record was unreadable."""
        return self._tally.total

    @property
    def unreadable_first(self) -> list[tuple[str, str]]:
        """The first unreadable records, as of the last `state`: key and reason."""
        return list(self._tally.first)

    def state(self, gather: Callable[[Any], list[Any]] = lambda mine: [mine]) -> dict:
        """Where the next batch begins, and in what data, as JSON, the same on every process.

        Args:
          gather: gives the values (JSON) of all processes for this one's; what was unreadable since the last call is
            added up with it, so that all processes call this equally often.
        """
        held = self._apportionment
        return {
            "next_index": self._next_index,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "sources": self._pipeline.describe(),
            "packing": self._pipeline.describe_packing(),
            "rows": self._rows(),
            "origin": {"index": held.begin, "rows": dict(zip(held.names, held.already or [0] * len(held.names)))},
            **self._tally.state(gather),
        }

    def metrics(self) -> dict[str, float]:
        """Of each source of a mixture, the rows and epochs up to here, and its unreadable records as of `state`.

        Where files were damaged and left out, `damaged` says how many, and how many members of others.
        """
        metrics = {"damaged": float(self._pipeline.damaged)} if self._pipeline.damaged else {}
        for name, rows in self._rows().items() if isinstance(self._pipeline.source, Mixture) else ():
            metrics[f"source/{name}/rows"] = float(rows)
            metrics[f"source/{name}/epochs"] = rows / len(self._pipeline.parts[name].source)
            metrics[f"source/{name}/unreadable"] = float(self._tally.by_source[name])
        return metrics

    def _rows(self) -> dict[str, int]:
        """How many rows each source has had."""
        return dict(
            zip(
                self._apportionment.names,
                self._apportionment.before(self._pipeline.first_example(self._next_index)).tolist(),
            )
        )

    def wait_seconds(self) -> float:
        """Seconds that the caller has waited for batches since it last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the threads or workers; whatever they have prepared is dropped."""
        self._stream.close()


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
                    logging.warning("evaluation leaves out %s", error)
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
