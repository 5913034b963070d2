"""What evaluators share: results, and embeddings of a whole source on all devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vlm_jax import mesh as meshes
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import evaluation_batches
from vlm_jax.errors import UserError
from vlm_jax.units import timed

Predict = Mapping[str, Callable]
# Cosines closer than this are equal: f32 products of the same vectors differ by an ulp between rows of a matrix.
TIE = 1e-6


class Result(dict[str, float]):
    """Metrics by name, with `artifacts` for the report (see `vlm_jax.report.artifacts`) and `rows`, one an example.

    `rows` are tables by name, each of columns `[n]`: `index` is the record of the source, `truth` and `answer` say what
    is right and what the model gave. A column that is called like a metric is what that metric is the mean of: from
    these come confidence intervals (`vlm_jax.evaluate.compare`).
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Any] | None = None,
        rows: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ):
        super().__init__(metrics)
        self.artifacts = dict(artifacts or {})
        self.rows = {name: dict(columns) for name, columns in (rows or {}).items()}


def rounded(batch_size: int, mesh: Mesh) -> int:
    """The batch size that divides over the devices: evaluation pads, so it never has to fail on this."""
    ways = meshes.batch_devices(mesh)
    return -(-batch_size // ways) * ways


@dataclasses.dataclass(frozen=True, kw_only=True)
@timed("every")
class Evaluator:
    """What all evaluators have.

    Args:
      every: how often, in one unit; the experiment's `evaluate` where none is given.
      batch_size: examples a batch; it changes the speed and never the numbers.
      weights: `raw` parameters, or their moving average.
    """

    batch_size: int = 256
    weights: Literal["raw", "ema"] = "raw"

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises UserError for values that do not fit together."""
        if self.batch_size < 1:
            raise UserError(f"{type(self).__name__}.batch_size={self.batch_size} must be at least 1.")

    def check_files(self) -> None:
        """Raises UserError where a file that the first evaluation reads is not there: said before the run begins."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Vectors of a whole source, and its other columns (`label`, ...), in order, on every process."""

    vectors: Float[np.ndarray, "n dim"]
    columns: dict[str, np.ndarray]


def embed_rows(function: Callable, rows: np.ndarray, batch_size: int, mesh: Mesh) -> Float[np.ndarray, "n dim"]:
    """`function` of all rows (the same on every process), in padded batches over all devices."""
    size = rounded(min(batch_size, len(rows)), mesh)
    mine = meshes.local_rows(mesh, size)
    out = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
        batch = meshes.put({"x": padded[mine]}, mine, size, mesh)
        out.append(meshes.gather(function(batch["x"]), mesh)[: len(part)])
    return np.concatenate(out)


def embed_source(
    function: Callable,
    source: Any,
    image: ImageTransform,
    batch_size: int,
    mesh: Mesh,
    more: Mapping[str, tuple[int, ...]] | None = None,
) -> Embedded:
    """`function` of all images of a source; each process decodes the rows that its devices hold.

    Args:
      more: other entries of the records that become columns, integers, and the shape of each.
    """
    vectors, columns = [], []
    for batch in placed_batches(source, image, batch_size, mesh, more):
        vectors.append(meshes.gather(function(batch.pixels), mesh)[batch.keep])
        columns.append(batch.columns)
    return Embedded(np.concatenate(vectors), joined(columns))


class Placed(NamedTuple):
    """A batch of a source's images on the devices.

    Attributes:
      pixels: what a model takes for its images, of all processes.
      columns: `index` and the other columns of the rows that are kept.
      keep: [rows], False past the end and where a record is unreadable.
      index: the records of the rows that this process holds; 0 where nothing is kept.
      place: puts arrays whose rows belong to those of `index` beside the images.
    """

    pixels: Any
    columns: dict[str, np.ndarray]
    keep: Bool[np.ndarray, " rows"]
    index: Int[np.ndarray, " local"]
    place: Callable[[np.ndarray], jax.Array]


def placed_batches(
    source: Any, image: ImageTransform, batch_size: int, mesh: Mesh, more: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[Placed]:
    """Batches of a whole source in order, all of one size; `more` as `embed_source` has it."""
    size = rounded(min(batch_size, len(source)), mesh)
    mine = meshes.local_rows(mesh, size)
    place = lambda rows: meshes.put({"rows": rows}, mine, size, mesh)["rows"]
    for batch in evaluation_batches(source, image, batch_size=size, rows=mine, more=more):
        names = [name for name in batch if name.partition("/")[0] == "image"]  # of NaFlex patches and where they lie
        pixels = meshes.put({name.removeprefix("image/"): batch.pop(name) for name in names}, mine, size, mesh)
        whole = {name: meshes.gather(x, mesh) for name, x in meshes.put(batch, mine, size, mesh).items()}
        keep = whole.pop("mask")
        columns = {name: values[keep] for name, values in whole.items()}
        yield Placed(pixels.get("image", pixels), columns, keep, batch["index"], place)


def joined(columns: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns of batches one after the other."""
    return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
