"""`Folder`: a folder of images with captions beside them, or with one folder a class."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data.files import find_files
from vlm_jax.data.index import Index, indexes
from vlm_jax.data.sources.base import Fields, ImageText, Missing, utf8
from vlm_jax.data.sources.webdataset import IMAGES
from vlm_jax.data.storage import File, Storage, content_hash, is_remote
from vlm_jax.errors import UserError

KIND = "folder1"  # raise the number whenever the same folder gives another index
SUFFIXES = tuple(f".{name}" for name in IMAGES)


@dataclasses.dataclass(frozen=True)
class Folder(ImageText):
    """All images below a folder: in each folder by name, then those of the folders in it.

    The names are listed once. Whether files came or went since is seen from the times of the folders alone; an image
    that is replaced under its name is simply read. Millions of small files are slow on any storage: convert them.

    Attributes:
      path: the folder, or its URL.
      text: extension of the file with the caption, beside the image and named like it; None for none.
      lines: each line of that file is a caption of its own.
      class_folders: the first folder on the way from `path` to an image is its class.
      index: where the list of names is kept: None for the cache folder of `storage`, else a folder.
    """

    text: str | None = "txt"
    lines: bool = False
    class_folders: bool = False
    index: str | None = None

    KIND: ClassVar[str] = "folder"
    HOW: ClassVar[tuple[str, ...]] = (*ImageText.HOW, "index")

    def validate(self) -> None:
        """Raises: UserError."""
        others = self._index.meta["others"]
        if self.text and len(self._index.arrays["ends"]) and f".{self.text}" not in others:
            lists = [name for name in others if name.endswith((".jsonl", ".csv", ".tsv"))]
            hint = f"{lists[0]} files are read by Listing" if lists else "text=None, class_folders=True for classes"
            raise UserError(f"{self.path} has no .{self.text} files beside its images ({hint}).")
        super().validate()

    @property
    def has_texts(self) -> bool:
        return self.text is not None

    @property
    def has_labels(self) -> bool:
        return self.class_folders

    def names_in_data(self) -> tuple[str, ...]:
        """The folders' names, sorted."""
        with_images = np.unique(self._index.arrays["folder"]).tolist()
        return tuple(sorted({self._class(self._index.meta["folders"][k][0]) for k in with_images} - {""}))

    def count(self) -> int:
        return len(self._index.arrays["ends"])

    def contents(self) -> Any:
        arrays = self._index.arrays
        folders = [name for name, _ in self._index.meta["folders"]]
        return content_hash(folders, *(arrays[name].tobytes().hex() for name in ("names", "ends", "folder")))

    def where(self, index: int) -> str:
        return self._path(index).encode("utf-8", "backslashreplace").decode()

    def fields(self, index: int) -> Fields:
        path = self._path(index)
        texts = self.texts_of(index) if self.text else ()
        return Fields(self._fetch(path), texts, self._class(str(PurePosixPath(path).parent)))

    def texts_of(self, index: int) -> Sequence[str]:
        path = str(PurePosixPath(self._path(index)).with_suffix(f".{self.text}"))
        text = utf8(self._fetch(path), path)
        return [line.strip() for line in (text.splitlines() if self.lines else [text])]

    def _path(self, index: int) -> str:
        arrays = self._index.arrays
        start = int(arrays["ends"][index - 1]) if index else 0
        name = os.fsdecode(arrays["names"][start : int(arrays["ends"][index])].tobytes())
        return str(PurePosixPath(self._index.meta["folders"][int(arrays["folder"][index])][0], name))

    def _class(self, folder: str) -> str:
        return "" if folder == "." else folder.partition("/")[0]

    def _fetch(self, path: str) -> bytes:
        try:
            return self.storage.fetch(f"{self._root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"there is no file {path}") from None

    @property
    def _root(self) -> str:
        path = self.path.removeprefix("file://").rstrip("/")
        return path if is_remote(path) else str(Path(path).expanduser())

    @functools.cached_property
    def _index(self) -> Index:
        if is_remote(self.path):
            return _remote_index(self._root, self.storage)
        if not os.path.isdir(self._root):
            find_files(self._root, SUFFIXES, self.storage)  # tells what is wrong, unless it is one file
            raise UserError(f"{self.path!r} is a file: give the folder.")
        return indexes([File(self._root, 0)], KIND, _local_index, self.storage, self.index, _unchanged)[0]


def _local_index(file: File) -> Index:
    """Names of the images below a folder, and the times at which each folder was last changed."""

    def walk(folder: str) -> Iterator[tuple[str, int, list[str]]]:
        time = os.stat(folder).st_mtime_ns  # before it is listed: what comes in between is seen the next time
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        yield os.path.relpath(folder, file.path), time, [name for name, is_folder in found if not is_folder]
        for name in sorted(name for name, is_folder in found if is_folder):
            yield from walk(os.path.join(folder, name))

    return _index(walk(file.path))


def _unchanged(file: File, index: Index) -> bool:
    try:
        return all(os.stat(os.path.join(file.path, name)).st_mtime_ns == at for name, at in index.meta["folders"])
    except OSError:
        return False


def _remote_index(url: str, storage: Storage) -> Index:
    folders: dict[str, list[str]] = {}
    for file in find_files(url, ("",), storage):
        folder, _, name = file.path.removeprefix(f"{url}/").rpartition("/")
        if any(part.startswith(".") for part in (*folder.split("/"), name)):
            continue
        folders.setdefault(folder or ".", []).append(name)
    in_order = sorted(folders, key=lambda folder: PurePosixPath(folder).parts)
    return _index((folder, 0, folders[folder]) for folder in in_order)


def _index(folders: Iterable[tuple[str, int, list[str]]]) -> Index:
    """`names` uint8, `ends` int64 [images], `folder` int32 [images]; `meta` has folders and endings of other files."""
    listed, images, ends, owner, others = [], bytearray(), [], [], Counter()
    for number, (folder, time, names) in enumerate(folders):
        listed.append((folder, time))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                images += os.fsencode(name)
                ends.append(len(images))
                owner.append(number)
            else:
                others[PurePosixPath(name).suffix or name] += 1
    meta = {"folders": listed, "others": dict(others)}
    arrays = {"names": np.frombuffer(bytes(images), np.uint8), "ends": np.array(ends, np.int64)}
    return Index(meta, {**arrays, "folder": np.array(owner, np.int32)})
