"""`Tfds`: data sets of TensorFlow Datasets that were prepared as ArrayRecord; TensorFlow is not needed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from vlm_jax.data.sources.array_record import DAMAGE
from vlm_jax.data.sources.base import Fields, ImageText, Missing, field_of, utf8
from vlm_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Tfds(ImageText):
    """A split of a data set, such as `Tfds("cifar10/train")` or `Tfds("coco_captions:1.1.0/train[:90%]")`.

    Images are not decoded by TFDS, but as those of every other source.

    Attributes:
      path: "NAME/SPLIT", "NAME/CONFIG:VERSION/SPLIT", or the folder of a prepared data set, "/" and the split; with or
        without "tfds:" before it.
      data_dir: folder of prepared data sets; None for TFDS's own (`TFDS_DATA_DIR`, or ~/tensorflow_datasets).
      image: the feature with the image; those of nested features as "a/b".
      text: features with captions, strings or sequences of them; () makes captions of the class names.
      label: feature with the class; None for none.
    """

    data_dir: str | None = None
    image: str = "image"
    text: tuple[str, ...] = ()
    label: str | None = "label"

    KIND: ClassVar[str] = "tfds"
    HOW: ClassVar[tuple[str, ...]] = ("storage", "data_dir", "path")

    def validate(self) -> None:
        """Raises: UserError, also for a data set that is not prepared, or not as ArrayRecord."""
        for field, names in (("image", (self.image,)), ("text", self.text), ("label", (self.label,))):
            for name in names:
                if name:
                    self._feature(name, field)
        super().validate()

    @property
    def name(self) -> str:
        info = self._builder.info
        return f"{self.KIND}/{info.full_name}/{self._split}"

    def names_in_data(self) -> tuple[str, ...]:
        """Those of the `ClassLabel` feature."""
        return tuple(getattr(self._feature(self.label, "label"), "names", None) or ())

    def count(self) -> int:
        return len(self._records)

    def contents(self) -> Any:
        info = self._builder.info
        files = [(name, list(split.shard_lengths)) for name, split in sorted(info.splits.items())]
        return [info.full_name, self._split, files]

    def where(self, index: int) -> str:
        return f"{self._builder.info.full_name}/{self._split}:{index}"

    def fields(self, index: int) -> Fields:
        record = self._read(index)
        label = field_of(record, self.label.replace("/", ".")) if self.label else None
        label = utf8(label, "the label") if isinstance(label, bytes) else label
        return Fields(self._image(record), self._texts(record), label)

    def texts_of(self, index: int) -> Sequence[str]:
        return self._texts(self._read(index))

    def _image(self, record: dict) -> bytes:
        image = field_of(record, self.image.replace("/", "."))
        if not isinstance(image, bytes):
            raise Missing(f"feature {self.image!r} is {type(image).__name__}, wanted is an encoded image")
        return image

    def _texts(self, record: dict) -> list[str]:
        values = (value for name in self.text for value in _flat(field_of(record, name.replace("/", "."))))
        return [utf8(value, "a caption").strip() for value in values]

    def _read(self, index: int) -> dict:
        try:
            return self._records[index]
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            if why.startswith(DAMAGE):
                raise Missing(f"bytes were changed: {why}") from None
            raise OSError(f"files of {self._split} in {self._builder.data_dir}: {why}") from error

    def _feature(self, path: str, field: str) -> Any:
        """The feature "a/b"."""
        feature = self._builder.info.features
        for part in path.split("/"):
            feature = getattr(feature, "feature", feature)  # of a sequence
            names = list(feature) if hasattr(feature, "keys") else []
            if part not in names:
                raise UserError(f"{self.path} has no feature {path!r} ({field}): {closest(part, names)}")
            feature = feature[part]
        return feature

    @property
    def _split(self) -> str:
        return self.path.rpartition("/")[2]

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        name, _, split = self.path.removeprefix("tfds:").rpartition("/")
        if not name or not split:
            raise UserError(f"Tfds({self.path!r}): wanted is NAME/SPLIT, such as 'cifar10/train'.")
        builder = _open(tfds, name, self.data_dir)
        if builder is None:
            raise UserError(
                f"{name} is not prepared in {self.data_dir or tfds.core.constants.DATA_DIR}: run `tfds build {name} "
                "--file_format=array_record`, or give data_dir."
            )
        form = builder.info.file_format.value if builder.info.file_format else "unknown"
        if form != "array_record":
            raise UserError(
                f"{name} is prepared as {form}, which cannot be read at random: run `tfds convert_format "
                f"--dataset={name} --out_file_format=array_record`, or build it with --file_format=array_record."
            )
        base = split.partition("[")[0].partition("+")[0]
        if base not in builder.info.splits and base != "all":
            raise UserError(f"{name} has no split {base!r}: {closest(base, builder.info.splits)}")
        return builder

    @functools.cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        decoders: Any = tfds.decode.SkipDecoding()
        for part in reversed(self.image.split("/")):
            decoders = {part: decoders}
        try:
            return self._builder.as_data_source(self._split, decoders=decoders)
        except ValueError as error:
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}") from error


def _open(tfds, name: str, data_dir: str | None):
    """The builder of a prepared data set, None where it is not there."""
    from pathlib import Path

    if (Path(name).expanduser() / "dataset_info.json").is_file():
        return tfds.builder_from_directory(str(Path(name).expanduser()))
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None


def _flat(value: Any) -> list[bytes]:
    if value is None:
        return []
    if isinstance(value, bytes):
        return [value]
    return [text for item in value for text in _flat(item)]
