"""State dicts that torch has pickled, read without torch, and without running what a pickle may ask for.

A `.bin` or `.pt` file is a zip archive: `NAME/data.pkl` describes a dict of tensors, each a view of bytes in
`NAME/data/KEY`. Unpickling calls whatever the file names, so only what such a dict is made of is admitted; the rest is
refused by its name before anything is called.
"""

from __future__ import annotations

import collections
import functools
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vlm_jax.errors import UserError

DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Refused(Exception):
    """The file asks for something that is no tensor."""


def open_pickle(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, also one that lies under the key `state_dict`.

    Raises:
      UserError: the file is damaged, is not of torch's zip format, or holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            described = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if described is None:
                raise Refused("it has no data.pkl")
            folder = described.removesuffix("data.pkl")
            if archive.getinfo(described).file_size and f"{folder}byteorder" in archive.namelist():
                if archive.read(f"{folder}byteorder") != b"little":
                    raise Refused("its bytes are big-endian")
            with archive.open(described) as file:
                loaded = _Tensors(file, archive, folder).load()
        return _named(loaded)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is damaged, or was written by torch before 1.6; load and save it again there."
        ) from error
    except Refused as error:
        raise UserError(f"{path} is refused: {error}; only tensors are ever unpickled.") from error
    except Exception as error:  # a damaged pickle raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{path} is damaged: {reason}.") from error


class _Tensors(pickle.Unpickler):
    """Admits dicts of tensors and numbers."""

    def __init__(self, file, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self._storage = functools.lru_cache(maxsize=None)(
            lambda dtype, key: np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
        )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return name  # which, unlike a type, nothing can call
        raise Refused(f"it asks for {module}.{name}")

    def persistent_load(self, record: Any) -> np.ndarray:
        kind, storage, key, _, _ = record
        if kind != "storage" or storage not in DTYPES:
            raise Refused(f"it refers to a {kind}")
        return self._storage(np.dtype(DTYPES[storage]), key)


def _view(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
    """A tensor: `shape` and `strides` count elements of the storage from `offset` on."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
    empty = 0 in shape
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides) or not (empty or last < storage.size):
        raise Refused(f"a tensor of {list(shape)} reaches beyond its bytes")
    bytes_of = tuple(step * storage.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, bytes_of, writeable=False)


def _named(loaded: Any) -> dict[str, np.ndarray]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise Refused(f"it holds a {type(loaded).__name__}, wanted is a dict of tensors")
    strange = [str(name) for name, value in loaded.items() if not isinstance(value, np.ndarray)]
    if strange or not loaded:
        raise Refused(f"{strange[0]} is no tensor" if strange else "it is empty")
    return {str(name): value for name, value in loaded.items()}
