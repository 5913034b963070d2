"""Images that a CSV file lists with their class and what group they are of: Waterbirds, WILDS (Koh et al. 2021)."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlm_jax.errors import UserError, closest
from vlm_jax.evaluate.readers.base import Annotated


@dataclasses.dataclass(frozen=True)
class Metadata(Annotated):
    """`path` is the CSV file, `images` the folder where the names in it begin. The defaults are Waterbirds'.

    The defaults' column names (Sagawa et al. 2020) are recalled, not re-read; a missing column is told at the start.

    Attributes:
      image_column, label: columns; labels are numbers, in the order of `classes`.
      group: columns whose values together are the group, such as ("y", "place"); () for no groups.
      only: (column, value) that rows must have.
      classes: names in label order.
    """

    image_column: str = "img_filename"
    label: str = "y"
    group: tuple[str, ...] = ("y", "place")
    only: tuple[tuple[str, str], ...] = (("split", "2"),)
    classes: tuple[str, ...] = ("landbird", "waterbird")

    KIND: ClassVar[str] = "metadata"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classes

    @functools.cached_property
    def group_names(self) -> tuple[str, ...]:
        """The groups that there are, sorted: "y=0 place=1"."""
        return tuple(sorted({self._group(row) for row in self._rows})) if self.group else ()

    def files(self) -> Sequence[Path]:
        return [Path(self.path).expanduser()]

    def _group(self, row: dict[str, str]) -> str:
        return " ".join(f"{column}={row[column]}" for column in self.group)

    @functools.cached_property
    def _rows(self) -> list[dict[str, str]]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(f"there is no file {file}.")
        with file.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            columns = reader.fieldnames or []
            for wanted in (self.image_column, self.label, *self.group, *(column for column, _ in self.only)):
                if wanted not in columns:
                    raise UserError(f"{file} has no column {wanted!r}; {closest(wanted, columns)}")
            rows = [row for row in reader if all(row[column] == value for column, value in self.only)]
        for row in rows:
            if not row[self.label].isdigit() or int(row[self.label]) >= len(self.classes):
                raise UserError(f"{file}: label {row[self.label]!r}, where there are {len(self.classes)} classes.")
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def image_path(self, index: int) -> str:
        return f"{self.images}/{self._rows[index][self.image_column]}"

    def __getitem__(self, index: int) -> dict:
        """`image` encoded bytes, `label`, and `group` where there are any."""
        row = self._rows[index]
        record = {"image": self.image(index), "label": int(row[self.label])}
        return record | ({"group": self.group_names.index(self._group(row))} if self.group else {})
