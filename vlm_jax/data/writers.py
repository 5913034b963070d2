"""Any source written in any format that can be read at random: shard by shard, interrupted and resumed at will."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.shards import Shards
from vlm_jax.data.sources.base import CLASSES_FILE
from vlm_jax.data.sources.example_proto import encode_example
from vlm_jax.errors import UserError, closest

ROW_GROUP = 100  # rows that a random read of a Parquet file decodes
SIGNATURES = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A record to be written.

    Attributes:
      number: its index in the source, which names it.
      key: what the source calls it.
      label: None where the source has no classes.
    """

    number: int
    image: bytes
    texts: Sequence[str]
    label: int | None
    key: str

    @property
    def name(self) -> str:
        return f"{self.number:09}"


@dataclasses.dataclass(frozen=True)
class Written:
    """What `convert` wrote: how many records, and key and reason of each that is unreadable."""

    records: int
    unreadable: list[tuple[str, str]]


def write_tar(path: Path, items: Iterator[Item], class_names: Sequence[str]) -> None:
    """A WebDataset tar as img2dataset lays it out: image, `.txt` with the first caption, `.json` with all that is known
    (`text`, `label`, `key`), and `.cls` where there are classes. All captions: `WebDataset(text=("json:text",))`."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            members = {extension_of(item.image): item.image}
            if item.texts:
                members["txt"] = item.texts[0].encode()
            if item.label is not None:
                members["cls"] = str(item.label).encode()
            members["json"] = json.dumps(_described(item), ensure_ascii=False).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{item.name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_array_record(path: Path, items: Iterator[Item], class_names: Sequence[str]) -> None:
    """Records `tf.train.Example` of `image`, `text`, `label` and `key`; the images are compressed already."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for item in items:
            writer.write(encode_example({"image": item.image, **_described(item)}))
    finally:
        writer.close()


def write_parquet(path: Path, items: Iterator[Item], class_names: Sequence[str]) -> None:
    """Columns `image` {bytes, path} and `text` (a list), `label` and `key`, as Hugging Face datasets write and read
    them, in small row groups with checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "text": pa.list_(pa.string()),
        **({"label": pa.int64()} if class_names else {}),
        "key": pa.string(),
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    features = {"info": {"features": {name: features[name] for name in columns if name in features}}}
    schema = pa.schema(columns, {"huggingface": json.dumps(features)})
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for rows in _groups(items, ROW_GROUP):
            images = [{"bytes": item.image, "path": f"{item.name}.{extension_of(item.image)}"} for item in rows]
            values = {"image": images, "text": [list(item.texts) for item in rows], "key": [item.key for item in rows]}
            values |= {"label": [item.label for item in rows]} if class_names else {}
            writer.write_table(pa.table({name: values[name] for name in columns}, schema))


def write_folder(path: Path, items: Iterator[Item], class_names: Sequence[str]) -> None:
    """A folder of images with `metadata.jsonl`, as Hugging Face's ImageFolder reads it, and as our `Listing` does."""
    path.mkdir()
    with open(path / "metadata.jsonl", "w", encoding="utf-8") as rows:
        for item in items:
            name = f"{item.name}.{extension_of(item.image)}"
            (path / name).write_bytes(item.image)
            rows.write(json.dumps({"file_name": name, **_described(item)}, ensure_ascii=False) + "\n")


# Format -> how a shard is written, and the end of its name.
FORMATS: dict[str, tuple[Callable[[Path, Iterator[Item], Sequence[str]], None], str]] = {
    "tar": (write_tar, ".tar"),
    "array_record": (write_array_record, ".array_record"),
    "parquet": (write_parquet, ".parquet"),
    "folder": (write_folder, ""),
}


def convert(source: Any, folder: str | Path, form: str, *, shard_records: int = 10_000) -> Written:
    """Writes all records of a source as shards "00000.tar", "00001.tar", ... of a folder, with `classes.txt` where
    there are classes, and `dataset.json`, which says where they come from.

    A shard has its name only when it is whole: after an interruption, the same call writes what is missing. Encoded
    images are written as they are, arrays as PNG. Unreadable records are left out and told.

    Args:
      form: "tar" | "array_record" | "parquet" | "folder".
      shard_records: records of a shard.

    Raises: UserError for another format, a folder that holds something else, or one that cannot be written.
    """
    if form not in FORMATS:
        raise UserError(f"format {form!r}: {closest(form, FORMATS)}")
    write, suffix = FORMATS[form]
    folder = Path(folder).expanduser()
    try:
        shards = Shards(folder, source, shard_records, form=form)
        if source.class_names:
            (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in source.class_names))
        unreadable = shards.write(
            suffix, lambda path, numbers, failed: write(path, _items(source, numbers, failed), source.class_names)
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}; the same command goes on where it stopped.") from error
    return Written(len(source) - len(unreadable), unreadable)


def extension_of(image: bytes) -> str:
    """The extension of an encoded image by its first bytes, "img" if they are unknown."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    if image[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((name for signature, name in SIGNATURES if image.startswith(signature)), "img")


def _items(source: Any, numbers: range, unreadable: list) -> Iterator[Item]:
    for number in numbers:
        try:
            record = source[number]
        except UnreadableRecord as error:
            unreadable.append([error.key, error.why])
            continue
        text, image = record.get("text") or (), record["image"]
        texts = [text] if isinstance(text, str) else list(text)
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
            unreadable.append([str(record.get("key", number)), f"its text is not UTF-8: {error.reason}"])
            continue
        image = _png(image) if isinstance(image, np.ndarray) else image
        label = int(record.get("label", -1)) if source.class_names else -1  # negative: of no class
        yield Item(number, image, texts, label if label >= 0 else None, str(record.get("key", number)))


def _described(item: Item) -> dict[str, Any]:
    return {"text": list(item.texts), **({} if item.label is None else {"label": item.label}), "key": item.key}


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(file, "PNG")
    return file.getvalue()


def _groups(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
