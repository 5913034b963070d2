"""`index`: opens a source, which builds its indexes, and says what it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build the indexes of a source, several files at a time, and keep them in the cache folder; "
        "--source.index=beside keeps them beside the files. Only files that changed are read again."
    )


def check(flags: argparse.Namespace) -> None:
    """There is nothing to check."""


def run(source: Any, flags: argparse.Namespace) -> Iterator[str]:
    """Lines on the opened source."""
    yield f"{source.name}: {len(source):,} records"
    yield f"fingerprint {source.fingerprint}"
    if source.class_names:
        yield f"{len(source.class_names):,} classes: {', '.join(source.class_names[:5])}" + (
            ", ..." if len(source.class_names) > 5 else ""
        )
