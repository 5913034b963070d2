"""Rows of several Parquet files as one table with random access."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vlm_jax.data.files import find_files
from vlm_jax.data.sources.parts import locate, starts_of
from vlm_jax.data.storage import File, Storage
from vlm_jax.errors import UserError

THREADS = 16  # that read footers: of a bucket they wait


class ParquetTable:
    """The files' rows in their order. Making one reads the footers; rows are read by row group, and kept.

    Several threads may read at the same time: a file is opened for every read, with the footer that is known.
    """

    def __init__(self, path: str, cache_bytes: int, storage: Storage | None = None):
        """Raises: UserError for no file, or one that is no Parquet."""
        self.storage = storage or Storage()
        self.files = find_files(path, (".parquet",), self.storage)
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(lambda file: _footer(file, self.storage), self.files))
        self.footers, self.schemas = [footer for footer, _ in read], [schema for _, schema in read]
        self.groups = [(k, group) for k, footer in enumerate(self.footers) for group in range(footer.num_row_groups)]
        self.starts = starts_of(self.footers[k].row_group(group).num_rows for k, group in self.groups)
        self.file_starts = starts_of(footer.num_rows for footer in self.footers)
        self.cache_bytes = cache_bytes
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Values of one row. The columns must be the same in every call, as they are kept.

        Raises: OSError where the file cannot be read, or is damaged.
        """
        number, at = locate(self.starts, index)
        group = self._group(number, columns)
        return {name: column[at].as_py() for name, column in zip(group.column_names, group.columns)}

    def where(self, index: int) -> str:
        """File and row within it, as a message names them."""
        k, row = locate(self.file_starts, index)
        return f"{self.files[k].name}:{row}"

    def scan(self, columns: Sequence[str], first: int = 0, last: int | None = None) -> Iterator[tuple]:
        """Tuples of the columns' values for rows `first` to `last` in order, without keeping row groups."""
        last = len(self) if last is None else last
        for number, start in enumerate(self.starts[:-1].tolist()):
            if start < last and first < self.starts[number + 1]:
                group = self._read(number, columns)
                inside = slice(max(0, first - start), last - start)
                yield from zip(*(group[column].to_pylist()[inside] for column in columns))

    def _group(self, number: int, columns: Sequence[str]):
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        group = self._read(number, columns)  # outside the lock: others go on, and seldom two read the same
        with self._lock:
            if number not in self._kept:
                self._kept[number] = group
                self._kept_bytes += group.nbytes
            while self._kept_bytes > self.cache_bytes and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return group

    def _read(self, number: int, columns: Sequence[str]):
        import pyarrow as pa
        import pyarrow.parquet as pq

        k, group = self.groups[number]
        try:
            where = _readable(self.files[k], self.storage)
            with pq.ParquetFile(where, metadata=self.footers[k], page_checksum_verification=True) as file:
                read = file.read_row_group(group, columns=list(columns), use_threads=False)
            wanted = self.footers[k].row_group(group).num_rows
            if read.num_rows != wanted:  # pages whose headers are damaged
                raise OSError(f"it has {read.num_rows} rows where {wanted} are told")
            return read
        except (pa.ArrowException, OSError) as error:  # damaged pages would lose thousands of rows: not to be skipped
            raise OSError(f"{self.files[k].path}, row group {group}: {error}") from error


def _footer(file: File, storage: Storage):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(_readable(file, storage))
        return footer, footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.path} is not a Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _readable(file: File, storage: Storage):
    """What pyarrow reads: the path of a file that is here, else an object that fetches what is asked for."""
    return storage.open(file) if file.remote else file.path


def hugging_face_names(schema, column: str | None) -> tuple[str, ...]:
    """Names of a ClassLabel feature, from the metadata that Hugging Face datasets put into the schema."""
    written = (schema.metadata or {}).get(b"huggingface")
    if not written or column is None:
        return ()
    feature = json.loads(written).get("info", {}).get("features", {}).get(column, {})
    return tuple(feature.get("names", ()))
