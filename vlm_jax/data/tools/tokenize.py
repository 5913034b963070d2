"""`tokenize`: the images of a source as codes of an autoencoder, computed once; `ImageCodes` reads them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.reader import Example, Reader
from vlm_jax.data.shards import Shards, Unreadable
from vlm_jax.data.sources.image_codes import METADATA, Codes
from vlm_jax.errors import UserError

if TYPE_CHECKING:
    from vlm_jax.library import AutoencoderModel

SHOWN = 5  # unreadable records that are named
ROW_GROUP = 1000  # rows that a random read decodes; of 1024 codes each they are 4 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the codes that an autoencoder has for a source's images, with their captions, as Parquet files. "
        "Killed at any moment, the same command goes on with the files that are missing."
    )
    parser.add_argument("--model", metavar="PATH", required=True, help="a workdir, or what else vlm_jax.load takes")
    parser.add_argument("--weights", choices=("params", "ema"), default="params", help="default: params")
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder, or one to go on in")
    parser.add_argument("--size", type=int, metavar="N", help="of the images, in pixels; default: the model's")
    parser.add_argument("--shard_records", type=int, metavar="N", default=10_000, help="records of a file")
    parser.add_argument("--batch_size", type=int, metavar="N", default=256)
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="that decode; default: one for each core")


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    if min(flags.batch_size, flags.shard_records, flags.size or 1) < 1 or flags.threads < 0:
        raise UserError("wanted are --batch_size, --shard_records and --size of at least 1, --threads of at least 0.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Writes, and says how many records, how fast, and which were unreadable."""
    model = _model(flags)
    codes = _codes(model)
    folder, began = Path(flags.output).expanduser(), time.monotonic()
    with ThreadPoolExecutor(flags.threads or os.cpu_count() or 1) as pool:
        tokenizer = Tokenizer(source, model, codes, pool)
        try:
            shards = Shards(folder, source, flags.shard_records, "parquet", image_codes=dataclasses.asdict(codes))
            unreadable = shards.write(".parquet", tokenizer.write)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error}; the same command goes on.") from error
    grid = " x ".join(map(str, codes.grid))
    yield f"{folder}: {len(source) - len(unreadable):,} records of {grid} codes of {codes.vocab_size:,}, by {model!r}"
    if tokenizer.count:
        seconds = time.monotonic() - began
        yield f"{tokenizer.count:,} images in {seconds:.1f} s, {tokenizer.count / seconds:,.1f} images/s"
    if unreadable:
        yield f"left out as unreadable: {len(unreadable):,}"
        yield from (f"  {key}: {why}" for key, why in unreadable[:SHOWN])


def _model(flags: argparse.Namespace) -> AutoencoderModel:
    """Raises: UserError where it gives no codes, or none of such images."""
    from vlm_jax.library import AutoencoderModel, load  # needs jax, which the command line does not

    model = load(flags.model, flags.weights, batch_size=flags.batch_size)
    if not isinstance(model, AutoencoderModel):
        raise UserError(f"--model={flags.model} is no autoencoder, which alone turns images into codes.")
    if model.vocab_size is None:
        raise UserError(f"--model={flags.model} has no codes: its latents are numbers.")
    if flags.size is not None:
        model = dataclasses.replace(model, image=dataclasses.replace(model.image, size=flags.size))
    model.task.model.check_size(model.image.size, model.image.size)
    return model


def _codes(model: AutoencoderModel) -> Codes:
    side, stages = model.image.size // model.task.model.encoder.stride, model.task.model.bottleneck.stages
    grid = (side, side) if stages is None else (side, side, stages)
    return Codes(grid, model.vocab_size, model.image.size, model.fingerprint)


class Tokenizer:
    """Writes the records of a source with codes in place of images. `count` is of those that it has written."""

    def __init__(self, source: Any, model: AutoencoderModel, codes: Codes, pool: ThreadPoolExecutor):
        self.count = 0
        self._source, self._model, self._codes, self._pool = source, model, codes, pool
        self._read = Reader(source, model.image)

    def write(self, path: Path, numbers: range, unreadable: Unreadable) -> None:
        """A Parquet file with the columns `image_codes`, `text` (a list), `label` where there are classes, and `key`,
        for the records of these numbers."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = self._source.class_names
        columns = {"image_codes": pa.list_(pa.int32()), "text": pa.list_(pa.string())}
        columns |= {"label": pa.int64()} if names else {}
        features = {"label": {"names": list(names), "_type": "ClassLabel"}} if names else {}
        metadata = {METADATA: json.dumps(dataclasses.asdict(self._codes))}
        metadata |= {"huggingface": json.dumps({"info": {"features": features}})}
        schema = pa.schema({**columns, "key": pa.string()}, metadata)
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for first in range(numbers.start, numbers.stop, ROW_GROUP):
                part = range(first, min(first + ROW_GROUP, numbers.stop))
                rows = [row for batch in self._batches(part, unreadable) for row in self._rows(batch)]
                writer.write_table(pa.Table.from_pylist(rows, schema))
                self.count += len(rows)

    def _batches(self, numbers: range, unreadable: Unreadable) -> Iterator[list[tuple[dict, Example]]]:
        """Records that can be read, decoded while the batch before is on the devices."""
        size = self._model.batch_size
        starts = [numbers[at : at + size] for at in range(0, len(numbers), size)]
        begin = lambda part: [self._pool.submit(self._load, number) for number in part]
        coming = begin(starts[0])
        for part in [*starts[1:], range(0)]:
            now, coming = coming, begin(part)
            good = []
            for found in (future.result() for future in now):
                if isinstance(found, UnreadableRecord):
                    unreadable.append((found.key, found.why))
                else:
                    good.append(found)
            if good:
                yield good

    def _load(self, number: int) -> tuple[dict, Example] | UnreadableRecord:
        try:
            record = self._read.record(number)
            example = self._read.example(record, number)
        except UnreadableRecord as error:
            return error
        record = {"key": str(number), **record}
        try:
            "".join(_texts(record)).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
            return UnreadableRecord(self._source.name, str(record["key"]), f"its text is not UTF-8: {error.reason}")
        return record, example

    def _rows(self, batch: Sequence[tuple[dict, Example]]) -> Iterator[dict]:
        codes = self._model.encode_tokens(np.stack([example.image for _, example in batch]), preprocessed=True)
        for (record, example), found in zip(batch, codes):
            label = example.label if example.label >= 0 else None
            yield {"image_codes": found.ravel(), "text": _texts(record), "label": label, "key": str(record["key"])}


def _texts(record: dict) -> list[str]:
    text = record.get("text") or ()
    return [text] if isinstance(text, str) else list(text)
