"""`Listing`: images that JSONL or CSV files name, with their captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from vlm_jax.data.sources.base import Fields, ImageText, Missing, field_of, strings
from vlm_jax.data.sources.text_table import TextTable
from vlm_jax.data.storage import is_remote
from vlm_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Listing(ImageText):
    """Rows of JSONL, CSV or TSV files that name an image each: `metadata.jsonl` as Hugging Face's ImageFolder has it,
    or the tables of CC3M and COCO exports.

    Attributes:
      image: column with the path or URL of the image.
      text: columns with captions; a JSON value may be a list of them, and lie deeper ("meta.alt"). () makes captions
        of the class names.
      label: column with the class, as number or name; None for none.
      root: folder or URL where the paths of images begin; None for the folder of the file that names them.
      index: where indexes are kept: None for the cache folder of `storage`, "beside" for the folder of the files, else
        a folder or URL.
    """

    image: str = "file_name"
    text: tuple[str, ...] = ("text",)
    label: str | None = None
    root: str | None = None
    index: str | None = None

    KIND: ClassVar[str] = "listing"
    HOW: ClassVar[tuple[str, ...]] = (*ImageText.HOW, "root", "index")

    def validate(self) -> None:
        """Raises: UserError, also where the first row of a file lacks a column."""
        for k, file in enumerate(self._rows.files):
            try:
                columns = self._rows.columns(k)
            except Missing as missing:
                raise UserError(f"{file.path}: {missing}.") from None
            wanted = (("image", self.image), *(("text", name) for name in self.text), ("label", self.label))
            for field, name in wanted:
                if name and columns and name.partition(".")[0] not in columns:
                    raise UserError(f"{file.path} has no column {name!r} ({field}): {closest(name, columns)}")
        super().validate()

    def count(self) -> int:
        return len(self._rows)

    def contents(self) -> Any:
        return [(file.name, file.size) for file in self._rows.files]

    def where(self, index: int) -> str:
        return self._rows.where(index)

    def fields(self, index: int) -> Fields:
        row = self._rows[index]
        name = field_of(row, self.image)
        if not isinstance(name, str) or not name:
            raise Missing(f"column {self.image!r} is {name!r}, wanted is the path of an image")
        path = self._path(index, name)
        try:
            image = self.storage.fetch(path)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"there is no file {path}") from None
        return Fields(image, self._texts(row), field_of(row, self.label) if self.label else None)

    def texts_of(self, index: int) -> Sequence[str]:
        return self._texts(self._rows[index])

    def _texts(self, row: dict[str, Any]) -> list[str]:
        return [text.strip() for name in self.text for text in strings(field_of(row, name), name)]

    def _path(self, index: int, name: str) -> str:
        if is_remote(name) or name.startswith("/"):
            return name
        root = self._rows.file_of(index).path.rpartition("/")[0] if self.root is None else self.root.rstrip("/")
        return f"{root}/{name}" if root else name

    @functools.cached_property
    def _rows(self) -> TextTable:
        return TextTable(self.path, self.storage, self.index)
