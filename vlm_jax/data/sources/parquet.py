"""`Parquet`: images with captions or class names in Parquet files, read at random."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.base import Missing
from vlm_jax.data.sources.parquet_table import ParquetTable, hugging_face_names
from vlm_jax.data.sources.window import Window
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Parquet(Window):
    """Rows of Parquet files as records of `image`, `text` and, where there are classes, `label`.

    Row groups are read whole, only the columns that are needed, and kept up to `cache_mb`. A data set that fits is
    read once; a larger one pays a row group for most examples, so write it with small groups (100 rows or so).

    Attributes:
      path: a file, a folder (all `*.parquet` below it), or a pattern such as "data/{a,b}/train-*.parquet" or
        "gs://bucket/{00000..00012}.parquet".
      image_column: encoded images: binary, or a struct {bytes, path} as Hugging Face datasets write it.
      text_column: captions, a string or a list of strings a row; None makes them of the class names.
      label_column: classes as integers from 0.
      class_name_column: classes as strings.
      objects_column: lists of structs {text, box}, for `data.sources.located`.
      templates: captions of a class; "{}" is its name.
      classes: names in label order. () takes them from the data: from `class_name_column`, in the order of
        `label_column` where both are given, else sorted; or from the features that Hugging Face datasets write.
      skip: rows to leave out at the start.
      limit: rows to use after that; None uses all.
      cache_mb: memory for row groups, in megabytes (1e6 bytes).
      storage: how files are read, those of URLs too.
    """

    path: str
    image_column: str = "image"
    text_column: str | None = None
    label_column: str | None = None
    class_name_column: str | None = None
    objects_column: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    classes: tuple[str, ...] = ()
    skip: int = 0
    limit: int | None = None
    cache_mb: int = 2000
    storage: Storage = Storage()

    KIND: ClassVar[str] = "parquet"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Checks the options against the files' footers; no rows are read.

        Raises: UserError for a missing file or column, one of another type than is needed, or no rows at all.
        """
        self.check_options()
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise UserError(f"Parquet.templates={self.templates}: each template needs one '{{}}' for the class name.")
        for field, (kind, fits) in _column_kinds().items():
            if column := getattr(self, field):
                self._check_column(field, column, kind, fits)
        if not self.text_column and not self.label_column and not self.class_name_column:
            raise UserError(
                f"{self.path} has images but which column goes with them? Set text_column, class_name_column or "
                f"label_column to one of: {', '.join(self._table.schemas[0].names)}."
            )
        if not self.text_column and not self.class_name_column and not self.class_names:
            raise UserError(
                f"column {self.label_column!r} of {self.path} has numbers without names: "
                "give class_name_column, or the names as `classes`."
            )
        self.check_count()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the files' names, lengths and columns and of what is read of them; not of where they lie."""
        table = self._table
        files = [(file.name, file.size, footer.num_rows) for file, footer in zip(table.files, table.footers)]
        read = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("path", "cache_mb", "storage")}
        if self.objects_column is None:
            del read["objects_column"]  # as it was before there was one: runs go on
        columns = [str(schema.remove_metadata()) for schema in table.schemas]
        return hashlib.sha256(json.dumps([files, columns, read]).encode()).hexdigest()[:16]

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order, () where there are none.

        Raises: UserError where the two columns contradict each other.
        """
        if self.classes:
            return tuple(self.classes)
        if self.class_name_column is None:
            return hugging_face_names(self._table.schemas[0], self.label_column)
        if self.label_column is None:
            return tuple(sorted({name for (name,) in self._table.scan([self.class_name_column]) if name is not None}))
        rows = set(self._table.scan([self.label_column, self.class_name_column]))
        pairs = sorted(row for row in rows if None not in row)
        if [label for label, _ in pairs] != list(range(len(pairs))):
            raise UserError(
                f"{self.path}: {self.label_column!r} and {self.class_name_column!r} do not give the classes from 0 on "
                "one name each; give `classes`, or only one of the two columns."
            )
        return tuple(name for _, name in pairs)

    def count(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `text` str or list of str, `label` int where there are classes, `key` "FILE:ROW".

        Raises: UnreadableRecord for a row without image or text; OSError where the file cannot be read.
        """
        place = self.place(index)
        row, key = self._table.row(place, self._columns), self._table.where(place)
        try:
            return {**self._record(row), "key": key}
        except Missing as missing:
            raise UnreadableRecord(self.name, key, str(missing)) from None

    def captions(self, limit: int | None = None) -> Iterator[str]:
        """Captions, at most `limit`, to train a tokenizer on; of classes, every name in every template once."""
        if self.text_column is None:
            texts = (template.format(name) for name in self.class_names for template in self.templates)
        else:
            rows = self._table.scan([self.text_column], self.skip, self.skip + len(self))
            texts = (text for (value,) in rows for text in _texts(value))
        return itertools.islice(texts, limit)

    @functools.cached_property
    def _table(self) -> ParquetTable:
        return ParquetTable(self.path, self.cache_mb * 10**6, self.storage)

    @functools.cached_property
    def _columns(self) -> list[str]:
        columns = (self.image_column, self.text_column, self.label_column, self.class_name_column, self.objects_column)
        return list(dict.fromkeys(column for column in columns if column))

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.class_names)}

    def _record(self, row: dict[str, Any]) -> dict:
        image = row[self.image_column]
        image = image["bytes"] if isinstance(image, dict) else image
        if not image:
            raise Missing(f"no bytes in column {self.image_column!r}")
        record = {"image": image}
        if self.label_column or self.class_name_column:
            record["label"] = self._label(row)
        if self.text_column:
            if not (texts := _texts(row[self.text_column])):
                raise Missing(f"no text in column {self.text_column!r}")
            record["text"] = texts if isinstance(row[self.text_column], list) else texts[0]
        else:
            record["text"] = [template.format(self.class_names[record["label"]]) for template in self.templates]
        if self.objects_column:
            record["objects"] = row[self.objects_column] or []
        return record

    def _label(self, row: dict[str, Any]) -> int:
        if row[self.label_column or self.class_name_column] is None:
            raise Missing("it has no class")
        if self.label_column is None:
            name = row[self.class_name_column]
            if name not in self._labels:
                raise Missing(f"class {name!r}, which is none of the {len(self.class_names)} classes")
            return self._labels[name]
        label = row[self.label_column]
        if label < 0 or (self.class_names and label >= len(self.class_names)):
            raise Missing(f"label {label}, where there are {len(self.class_names)} classes")
        return int(label)

    def _check_column(self, field: str, column: str, kind: str, fits) -> None:
        for file, schema in zip(self._table.files, self._table.schemas):
            if column not in schema.names:
                raise UserError(f"{file.path} has no column {column!r} ({field}): {closest(column, schema.names)}")
            if not fits(schema.field(column).type):
                raise UserError(
                    f"column {column!r} of {file.path} is {schema.field(column).type}, {field} needs {kind}."
                )


def _texts(value: str | list[str | None] | None) -> list[str]:
    return [text for text in ([value] if isinstance(value, str) else value or []) if text]


def _column_kinds() -> dict:
    """Field -> (what its column must be, whether a type is that)."""
    import pyarrow.types as t

    def binary(kind):
        return t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind)

    def string(kind):
        kind = kind.value_type if t.is_dictionary(kind) else kind
        return t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)

    def image(kind):
        if t.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and binary(kind.field("bytes").type)
        return binary(kind)

    def is_list(kind):
        return kind is not None and (t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))

    def texts(kind):
        return string(kind) or (is_list(kind) and string(kind.value_type))

    def label(kind):
        return t.is_integer(kind) or t.is_boolean(kind)

    def objects(kind):
        if not (is_list(kind) and t.is_struct(kind.value_type)):
            return False
        fields = {field.name: field.type for field in kind.value_type}
        box = fields.get("box")
        return "text" in fields and string(fields["text"]) and is_list(box) and t.is_floating(box.value_type)

    return {
        "image_column": ("binary, or a struct with binary 'bytes'", image),
        "text_column": ("strings or lists of strings", texts),
        "label_column": ("integers (strings go into class_name_column)", label),
        "class_name_column": ("strings (integers go into label_column)", string),
        "objects_column": ("lists of structs of a string 'text' and a list of floats 'box'", objects),
    }
