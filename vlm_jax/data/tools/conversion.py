"""`convert`: any source as shards of another format, all records of it or those of a keep-list."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from vlm_jax.data.tools.keep import Kept
from vlm_jax.data.writers import FORMATS, convert
from vlm_jax.errors import UserError, closest

SHOWN = 5  # unreadable records that are named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a source as shards. Interrupted, the same command writes the shards that are missing."
    parser.add_argument("--output", metavar="DIR", required=True, help="a new folder, or one to go on in")
    parser.add_argument("--format", metavar="FORMAT", default="tar", help=f"{' | '.join(FORMATS)} (default: tar)")
    parser.add_argument("--shard_records", type=int, metavar="N", default=10_000, help="records of a shard")
    parser.add_argument("--keep", metavar="FILE", help="write only the records of this keep-list, from `curate`")


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    if flags.format not in FORMATS:
        raise UserError(f"--format={flags.format}: {closest(flags.format, FORMATS)}")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Writes, and says how many records, and which were unreadable."""
    if flags.keep:
        source = Kept(source, flags.keep)
    written = convert(source, flags.output, flags.format, shard_records=flags.shard_records)
    yield f"{flags.output}: {written.records:,} records"
    if written.unreadable:
        yield f"left out as unreadable: {len(written.unreadable):,}"
        yield from (f"  {key}: {why}" for key, why in written.unreadable[:SHOWN])
