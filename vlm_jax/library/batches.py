"""Lists of any length as batches of a few fixed shapes, and pictures as users give them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax import mesh as meshes
from vlm_jax.data.errors import UnreadableImage
from vlm_jax.data.image import ImageTransform
from vlm_jax.errors import UserError

Images = Any  # a picture or several: `PIL.Image`, path, encoded bytes, uint8 array [h, w, 3]; or [n, h, w, 3]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Of at most `size` rows, rounded up to what the devices divide."""

    mesh: Mesh
    size: int

    def rows(self, count: int) -> int:
        """Of a batch for so many items: a power of two for each device, or `size`."""
        ways = meshes.batch_devices(self.mesh)
        most = -(-self.size // ways)
        return ways * min(most, power_of_two(-(-count // ways)))

    def run(self, function: Callable, items: Sequence, prepare: Callable[[Sequence], Any]) -> np.ndarray:
        """`function(batch, start)` of what `prepare` makes of the items, one row each; `start` counts items before it.

        A batch is an array or a dict of arrays; it is filled up with copies of its first row, so that shapes do not
        depend on how many items there are.
        """
        size = self.rows(len(items))
        mine = meshes.local_rows(self.mesh, size)
        out = []
        starts = range(0, len(items), size)
        parts = [items[start : start + size] for start in starts]
        with ThreadPoolExecutor(1) as ahead:  # the next batch is prepared while the devices have this one
            coming = ahead.submit(prepare, parts[0])
            for start, part, following in itertools.zip_longest(starts, parts, parts[1:]):
                batch = coming.result()
                if following is not None:
                    coming = ahead.submit(prepare, following)
                several = isinstance(batch, Mapping)
                arrays = batch if several else {"x": batch}
                pad = lambda array: np.concatenate([array, np.repeat(array[:1], size - len(array), axis=0)])
                placed = meshes.put({k: pad(v)[mine] for k, v in arrays.items()}, mine, size, self.mesh)
                found = function(placed if several else placed["x"], start)
                out.append(meshes.gather(found, self.mesh)[: len(part)])
        return np.concatenate(out)


def power_of_two(count: int) -> int:
    """The least one that is not below `count`."""
    return 1 << (count - 1).bit_length()


def is_several(images: Images) -> bool:
    """Whether these are pictures, and not one."""
    if hasattr(images, "__array__") and not hasattr(images, "mode"):  # an array, of numpy or jax, but no `PIL.Image`
        return np.ndim(images) == 4
    return isinstance(images, Sequence | Iterator) and not isinstance(images, str | bytes)


def listed(images: Images) -> Sequence:
    """Several pictures, of one or several."""
    if hasattr(images, "__array__") and not hasattr(images, "mode"):
        array = np.asarray(images)
        return array if array.ndim == 4 else array[None]
    return list(images) if is_several(images) else [images]


def read(image: ImageTransform, pictures: Sequence) -> np.ndarray | dict[str, np.ndarray]:
    """A batch, decoded by as many threads as there are cores. Raises UserError, which names what cannot be read."""
    seen: set[int] = set()
    for picture in pictures:
        if id(picture) in seen and hasattr(picture, "load"):
            picture.load()  # a `PIL.Image` that is given twice, and that two threads must not decode at once
        seen.add(id(picture))
    with ThreadPoolExecutor(min(len(pictures), os.cpu_count() or 1)) as pool:
        return image.batch(list(pool.map(functools.partial(_one, image), pictures)))


def _one(image: ImageTransform, picture: Any) -> np.ndarray:
    name = picture if isinstance(picture, str | os.PathLike) else type(picture).__name__
    try:
        return image(content(picture))
    except UnreadableImage as error:
        raise UserError(f"{name}: {error}.") from error


def content(picture: Any) -> Any:
    """What `ImageTransform` takes: the bytes of a file, anything else as it is. Raises UserError."""
    if isinstance(picture, str | os.PathLike):
        from etils import epath  # also reads gs://

        try:
            return epath.Path(picture).read_bytes()
        except OSError as error:
            raise UserError(f"{picture} cannot be read: {error.strerror or type(error).__name__}.") from None
    return np.asarray(picture) if isinstance(picture, jax.Array) else picture
