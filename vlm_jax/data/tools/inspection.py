"""`inspect`: statistics of a source, a contact sheet, and the records that cannot be read."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_jax.data.tools.files import write_json, write_whole
from vlm_jax.data.tools.measure import Measurements, default_output
from vlm_jax.data.tools.sheet import contact_sheet, spread
from vlm_jax.data.tools.statistics import statistics, table
from vlm_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Look at every record, or at --limit of them. Writes inspect.json, unreadable.tsv and contact_sheet.png. "
        "Interrupted, the same command goes on; `curate` with the same --output uses what was measured."
    )
    parser.add_argument("--output", metavar="DIR", help="default: reports/NAME of the source")
    parser.add_argument("--limit", type=int, metavar="N", help="look at N records, spread evenly over the source")
    parser.add_argument("--images", type=int, metavar="N", default=24, help="pictures of the sheet (default: 24)")
    parser.add_argument("--threads", type=int, metavar="N", default=0, help="default: one for each core")
    parser.add_argument(
        "--duplicate_bits", type=int, metavar="N", default=4, help="images so near count as duplicates (default: 4)"
    )


def check(flags: argparse.Namespace) -> None:
    """Raises: UserError, before the source is opened."""
    for name in ("images", "threads", "duplicate_bits"):
        if getattr(flags, name) < 0:
            raise UserError(f"--{name}={getattr(flags, name)} is negative.")


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Measures, writes the report, and gives its short form."""
    folder = Path(flags.output or default_output(source))
    rows = Measurements(source, folder, flags.limit, flags.threads)
    found = statistics(rows, source.class_names, flags.duplicate_bits)
    write_json(folder / "inspect.json", {"source": source.name, "fingerprint": source.fingerprint, **found})
    bad = (f"{row.index}\t{row.key}\t{row.unreadable}\n" for row in rows if row.unreadable)
    write_whole(folder / "unreadable.tsv", bad)
    yield from table(found)
    yield f"{folder}: inspect.json, unreadable.tsv"
    if flags.images and found["records"] > found["unreadable"]:
        shown = _records(source, rows, found["records"] - found["unreadable"], flags.images)
        write_whole(folder / "contact_sheet.png", contact_sheet(shown))
        yield f"{folder}/contact_sheet.png: {len(shown)} pictures"


def _records(source: Any, rows: Measurements, readable: int, count: int) -> list[dict]:
    """Readable records, spread over the source."""
    wanted = set(spread(readable, count))
    good = (row.index for row in rows if not row.unreadable)
    return [source[index] for at, index in enumerate(itertools.islice(good, max(wanted) + 1)) if at in wanted]
