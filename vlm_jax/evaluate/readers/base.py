"""What readers of annotation files with a folder of images have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.storage import Storage, content_hash
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Annotated(abc.ABC):
    """A source of images that annotation files name.

    Attributes:
      path: the annotations, a file or a folder as the reader says.
      images: the folder where the names of images begin.
      storage: how images are read, those of URLs too; annotations are local files.
    """

    path: str
    images: str
    storage: Storage = Storage()

    KIND: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Reads the annotations, and sees whether the first image is there. Raises: UserError."""
        if not len(self):
            raise UserError(f"{self.path}: there is nothing in it for {type(self).__name__}.")
        try:
            self.storage.fetch(self.image_path(0))
        except OSError as error:
            raise UserError(
                f"{type(self).__name__}.images={self.images}: {self.image_path(0)}: {type(error).__name__}."
            ) from None

    @abc.abstractmethod
    def image_path(self, index: int) -> str:
        """Where the image of a record lies."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict: ...

    @property
    def name(self) -> str:
        return f"{self.KIND}/{Path(self.path).stem}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the annotations as far as names and sizes tell, and of what is read of them."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        of = {key: value for key, value in options.items() if key not in ("path", "images", "storage")}
        return content_hash(self.KIND, of, [(file.name, file.stat().st_size) for file in self.files()])

    @abc.abstractmethod
    def files(self) -> Sequence[Path]:
        """The annotation files."""

    def image(self, index: int) -> bytes:
        """The encoded image of a record. Raises: UnreadableRecord where it is missing."""
        path = self.image_path(index)
        try:
            return self.storage.fetch(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UnreadableRecord(self.name, str(index), f"there is no file {path}") from None

    def __getstate__(self) -> dict:
        """The options alone: a process that gets a copy reads the files itself."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Choice:
    """Captions of an image, the right one first, and the part of the test that it belongs to."""

    texts: tuple[str, ...]
    subset: str


class Choices(Annotated):
    """A source of images with captions of which one is right; `vlm_jax.evaluate.choice` scores it."""

    @abc.abstractmethod
    def choices(self, index: int) -> tuple[Choice, ...]:
        """The choices to be made for an image, without reading it."""

    def __getitem__(self, index: int) -> dict:
        """`image`, `text` all the right captions."""
        return {"image": self.image(index), "text": [choice.texts[0] for choice in self.choices(index)]}


def load_json(path: str | Path) -> Any:
    """Raises: UserError for a file that is missing, or is no JSON."""
    path = Path(path).expanduser()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}.") from error


def checked_object(value: Any, where: str) -> dict[str, Any]:
    """Raises: UserError where the JSON value is no object."""
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a {type(value).__name__}, wanted is an object.")
    return value


def checked_list(value: Any, where: str) -> list[Any]:
    """Raises: UserError where the JSON value is no list."""
    if not isinstance(value, list):
        raise UserError(f"{where} holds a {type(value).__name__}, wanted is a list.")
    return value


def checked(entry: Any, kinds: dict[str, type | tuple[type, ...]], where: str) -> dict[str, Any]:
    """A JSON object that has these keys, of these types. Raises: UserError."""
    for key, kind in kinds.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            shown = str(entry)[:60]
            raise UserError(f"{where} has no proper {key!r}: {shown}.")
    return entry
