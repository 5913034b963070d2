"""Arrays of a file or a folder of files by name: shapes are known from headers, values are read one at a time."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.interop.pickles import open_pickle

# In the order in which libraries look for them. A folder of the hub may hold both, in different names of arrays.
HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Named arrays of which only the shapes are in memory.

    Attributes:
      where: the file or folder, for messages.
      shapes: of every array.
      fetch: reads one.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    fetch: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """The array in f32, whatever it is stored in. Raises UserError where the file is damaged."""
        return np.asarray(self.fetch(name)).astype(np.float32, copy=False)

    def renamed(self, rename: Callable[[str], str]) -> Tensors:
        """The same arrays under other names."""
        names = {rename(name): name for name in self.shapes}
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Tensors(self.where, shapes, lambda name: self.fetch(names[name]))


def find(folder: Path, names: Sequence[str]) -> Path:
    """The file of weights in a folder, or the index of its parts. Raises UserError where there is none."""
    for path in (folder / name for file in names for name in (file, f"{file}.index.json")):
        if path.is_file():
            return path
    raise UserError(f"{folder} has no weights: wanted is {', '.join(names)}, whole or in parts with an index.")


def open_tensors(path: Path) -> Tensors:
    """The arrays of a `.safetensors`, `.bin` or `.npz` file, or of all parts that an `.index.json` lists.

    Raises:
      UserError: the file is damaged, holds anything but tensors, or a part is missing.
    """
    if path.name.endswith(".index.json"):
        return _parts(path)
    readers = {".safetensors": _safetensors, ".npz": _npz, ".bin": _pickle, ".pt": _pickle, ".pth": _pickle}
    if path.suffix not in readers:
        raise UserError(f"{path} is no file of weights that can be read; wanted is {', '.join(readers)}.")
    return readers[path.suffix](path)


def _safetensors(path: Path) -> Tensors:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(f"{path} needs the package safetensors: pip install 'vlm_jax[hf]'") from None

    try:
        file = safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {_first_line(error)}.") from error
    return Tensors(str(path), shapes, file.get_tensor)


def _npz(path: Path) -> Tensors:
    try:
        file = np.load(path, allow_pickle=False)
        shapes = {}
        for name in file.files:
            with file.zip.open(f"{name}.npy") as header:
                version = np.lib.format.read_magic(header)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes[name] = read(header)[0]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no .npz file of arrays: {_first_line(error)}.") from error

    def fetch(name: str) -> np.ndarray:
        try:
            return file[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: {name} is damaged: {_first_line(error)}.") from error

    return Tensors(str(path), shapes, fetch)


def _pickle(path: Path) -> Tensors:
    arrays = open_pickle(path)
    return Tensors(str(path), {name: value.shape for name, value in arrays.items()}, arrays.__getitem__)


def _parts(index: Path) -> Tensors:
    try:
        files = json.loads(index.read_text())["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights: {_first_line(error)}.") from error
    if lost := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index} lists {len(names)} files of which {', '.join(lost)} is not there.")
    opened = {name: open_tensors(index.parent / name) for name in names}
    if lost := [name for name, file in files.items() if name not in opened[file].shapes]:
        raise UserError(f"{index}: {lost[0]} is not in {files[lost[0]]}.")
    shapes = {name: opened[file].shapes[name] for name, file in files.items()}
    return Tensors(str(index.parent), shapes, lambda name: opened[files[name]].fetch(name))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
