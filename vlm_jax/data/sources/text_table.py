"""Rows of JSONL, CSV and TSV files, and of lists in JSON, read at random."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from typing import Any

import numpy as np

from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources.base import Missing, utf8
from vlm_jax.data.sources.parts import locate, starts_of
from vlm_jax.data.storage import File, Storage
from vlm_jax.errors import UserError

KIND = "rows1"  # raise the number whenever the same file gives another index
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
PIECE = 2**24  # bytes that are looked through at a time
NEWLINE, RETURN, QUOTE = b'\n\r"'


class TextTable:
    """The rows of several files in their order; of each file an index says where each row begins and ends.

    CSV and TSV files begin with a row of column names, and a quoted value may go over several lines (RFC 4180). Rows of
    a `.json` are the elements of the list that it is.
    """

    def __init__(self, path: str, storage: Storage, index: str | None, suffixes: tuple[str, ...] = SUFFIXES):
        """Raises: UserError for no file, one of another kind, quotes that are never closed, or JSON that is no list."""
        self.storage = storage
        self.files = find_files(path, suffixes, storage)
        for file in self.files:
            if not file.name.endswith(suffixes):
                raise UserError(f"{file.path} is none of {', '.join(suffixes)}.")
        self.indexes = indexes(self.files, KIND, functools.partial(make_row_index, storage=storage), storage, index)
        counts = (len(index.arrays["start"]) - self._headers(k) for k, index in enumerate(self.indexes))
        self.starts = starts_of(max(count, 0) for count in counts)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row: any JSON object, or strings by column name.

        Raises: Missing for a row that is none.
        """
        k, row = locate(self.starts, index)
        text = utf8(self._bytes(k, row + self._headers(k)), "the row")
        if self._headers(k):
            return self._by_column(k, text)
        try:
            value = json.loads(text)
        except ValueError as error:
            raise Missing(f"the row is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Missing(f"the row is {text[:40]!r}, wanted is a JSON object")
        return value

    def where(self, index: int) -> str:
        """File and row, the first being 0."""
        k, row = locate(self.starts, index)
        return f"{self.files[k].name}:{row}"

    def file_of(self, index: int) -> File:
        return self.files[locate(self.starts, index)[0]]

    def columns(self, k: int) -> list[str]:
        """The column names of file `k`; of JSONL those of its first row."""
        if self._headers(k):
            return self._names[k]
        first = int(self.starts[k])
        return list(self[first]) if first < self.starts[k + 1] else []

    @functools.cached_property
    def _names(self) -> list[list[str]]:
        """Column names by file, [] where it has no row of them."""
        names = []
        for k, index in enumerate(self.indexes):
            has = self._headers(k) and len(index.arrays["start"])
            names.append(self._values(k, utf8(self._bytes(k, 0), "the first row")) if has else [])
        return names

    def _headers(self, k: int) -> int:
        return int(self.files[k].name.endswith((".csv", ".tsv")))

    def _by_column(self, k: int, text: str) -> dict[str, str]:
        values, names = self._values(k, text), self._names[k]
        if len(values) != len(names):
            raise Missing(f"the row has {len(values)} values for {len(names)} columns")
        return dict(zip(names, values))

    def _values(self, k: int, text: str) -> list[str]:
        delimiter = "\t" if self.files[k].name.endswith(".tsv") else ","
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise Missing(f"the row is not CSV: {error}") from None

    def _bytes(self, k: int, row: int) -> bytes:
        arrays, file = self.indexes[k].arrays, self.files[k]
        here = File(str(self.storage.local(file)), file.size)
        return self.storage.read(here, int(arrays["start"][row]), int(arrays["stop"][row]))


def make_row_index(file: File, storage: Storage) -> Index:
    """Where rows lie: `start` and `stop` int64 [rows], without line ends and blank lines.

    Raises: UserError where quotes of a CSV file are never closed, or a `.json` is no list.
    """
    if file.name.endswith(".json"):
        return _list_index(file, storage)
    quoted = file.name.endswith((".csv", ".tsv"))
    data = np.memmap(storage.local(file), np.uint8, "r") if file.size else np.empty(0, np.uint8)
    ends, quotes = [np.empty(0, np.int64)], 0
    for at in range(0, len(data), PIECE):
        piece = data[at : at + PIECE]
        found = np.flatnonzero(piece == NEWLINE)
        if quoted:
            seen = quotes + np.cumsum(piece == QUOTE, dtype=np.int64)
            found, quotes = found[seen[found] % 2 == 0], int(seen[-1])
        ends.append(found + at)
    if quotes % 2:
        raise UserError(f"{file.path} has a quote that is never closed, so that its rows cannot be told apart.")
    stop = np.concatenate([*ends, [len(data)]])
    start = np.concatenate([[0], stop[:-1] + 1])
    with_return = (stop > start) & (data[np.maximum(stop, 1) - 1] == RETURN) if len(data) else np.zeros(1, bool)
    stop = stop - with_return
    rows = stop > start
    return Index({}, {"start": start[rows], "stop": stop[rows]})


def _list_index(file: File, storage: Storage) -> Index:
    text = storage.local(file).read_bytes().decode("latin-1")  # a character a byte: JSON's own are ASCII
    decoder, blank = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    starts, stops = [], []

    def sign(at: int, wanted: str) -> tuple[str, int]:
        """What stands next and is not blank, and where that ends."""
        at = blank.match(text, at).end()
        if at == len(text) or text[at] not in wanted:
            raise ValueError(f"{' or '.join(map(repr, wanted))} should stand at byte {at}")
        return text[at], at + 1

    try:
        found, at = sign(3 * text.startswith("\xef\xbb\xbf"), "[")  # after a byte order mark
        if text.startswith("]", blank.match(text, at).end()):
            found = "]"
        while found != "]":
            starts.append(blank.match(text, at).end())
            at = decoder.raw_decode(text, starts[-1])[1]
            stops.append(at)
            found, at = sign(at, ",]")
    except ValueError as error:
        raise UserError(f"{file.path} is not a list in JSON: {error}.") from None
    return Index({}, {"start": np.array(starts, np.int64), "stop": np.array(stops, np.int64)})
