"""Batches that are a pure function of (seed, global example index), however rows are split and runs restarted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlm_jax.data import state as data_state
from vlm_jax.data.apportion import Apportionment
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.conversations_rows import ConversationRows
from vlm_jax.data.documents import Documents
from vlm_jax.data.documents_rows import DocumentRows
from vlm_jax.data.evaluation import evaluation_batches as evaluation_batches
from vlm_jax.data.fusion import Fusion
from vlm_jax.data.fusion_rows import FusionRows
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.mixture import Mixture, Part
from vlm_jax.data.packing import Packing
from vlm_jax.data.packing_rows import PackedRows
from vlm_jax.data.prompted import Prompted
from vlm_jax.data.prompted_rows import PromptedRows
from vlm_jax.data.rows import Rows
from vlm_jax.data.stream import stream
from vlm_jax.data.text import Text
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
      conversations: rows hold conversations (`data.sources.conversations.Messages`), or pairs as such; where they are
        packed, what is said above of row g holds of conversation g.
      fusion: rows hold documents of texts and of images as tokens, of one vocabulary; packed as conversations are.
      prompted: beside its caption each row has a text of prompt and answer, see `data.prompted_rows`.
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
    conversations: Conversations | None = None
    prompted: Prompted | None = None
    fusion: Fusion | None = None

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

        layouts = [
            name
            for name in ("packing", "tiles", "documents", "conversations", "prompted", "fusion")
            if getattr(self, name) is not None
        ]
        if len(layouts) > 1:
            raise UserError(f"Pipeline.{' and '.join(layouts)} say each what a row holds; set one of them.")
        for reads_text in (self.documents, self.conversations, self.fusion):
            if reads_text is not None:
                reads_text.check(self.text)
        if self.fusion is not None:
            for part in self.parts.values():
                self.fusion.check_source(part.source)
        if (layout := self.packing or self.tiles or self.conversations) is not None:
            for part in self.parts.values():
                layout.transform(part.image or self.image)
        if self.prompted is not None:
            for part in self.parts.values():
                self.prompted.check(part.image or self.image)
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
        if self.conversations is not None:
            return ConversationRows
        if self.prompted is not None:
            return PromptedRows
        if self.fusion is not None:
            return FusionRows
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

    @property
    def _packed(self) -> Packing | Conversations | Fusion | None:
        return self.packing or self.conversations or self.fusion

    @property
    def window(self) -> tuple[int, int]:
        """So many examples become so many rows."""
        return (1, 1) if self._packed is None else (self._packed.examples, self._packed.rows)

    def describe_packing(self) -> dict | None:
        """How it is packed, for the state of a checkpoint."""
        return None if self._packed is None else json.loads(json.dumps(dataclasses.asdict(self._packed)))

    def first_example(self, row: int) -> int:
        """The index of the first example in the row, or in the packed window that it begins."""
        examples, rows = self.window
        return row // rows * examples

    def first_row(self, example: int) -> int:
        """The row that holds the example, or the first of its packed window."""
        examples, rows = self.window
        return example // examples * rows

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
        if batch_size % self.window[1]:
            what = type(self._packed).__name__
            raise UserError(f"batch_size={batch_size} is not a multiple of {what}.rows={self.window[1]}.")
        origin = None
        if state is not None:
            state = data_state.complete(state)
            now = {"seed": seed, "sources": self.describe(), "packing": self.describe_packing()}
            if (was := data_state.window(state)) != (is_now := data_state.window(now)):
                raise UserError(
                    f"examples that are packed into rows: was {was}, is {is_now}; they say where in the data a run is, "
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
    H, W, 3] and what `TiledRows` says; documents what `Documents.spec` says; conversations what
    `Conversations.spec` and `ConversationRows` say, and documents of tokens what `Fusion.spec` and `FusionRows` say.
    """

    def __init__(self, pipeline: Pipeline, seed: int, load: _Load, rows: np.ndarray, state: dict):
        self._pipeline, self._seed, self._batch_size = pipeline, seed, load.batch_size
        self._next_index, self._apportionment = load.next_index, load.make.apportionment
        self._tally = data_state.Tally(list(pipeline.parts), state)
        self._waited = 0.0
        options = dict(rows=rows, threads=pipeline.threads, prefetch=pipeline.prefetch, window=pipeline.window[1])
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
