"""Sources as a command line names them: a path whose kind is recognised, or the source of a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.config import bind
from vlm_jax.data.shards import MANIFEST, read_manifest
from vlm_jax.data.sources.image_codes import ImageCodes
from vlm_jax.data.sources.interleaved import Interleaved
from vlm_jax.data.storage import is_remote
from vlm_jax.errors import UserError, closest
from vlm_jax.overrides import override_all

TARGETS = {
    ".tar": "data.sources.webdataset.WebDataset",
    ".parquet": "data.sources.parquet.Parquet",
    ".array_record": "data.sources.array_record.ArrayRecord",
    ".arrayrecord": "data.sources.array_record.ArrayRecord",
    ".jsonl": "data.sources.listing.Listing",
    ".csv": "data.sources.listing.Listing",
    ".tsv": "data.sources.listing.Listing",
}
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LISTS = ("metadata.jsonl", "metadata.csv")
MOST_ENTRIES = 10_000  # of a folder that are looked at
# Columns of Parquet files, as those who publish data sets call them.
IMAGES = ("image", "img", "jpg", "image_bytes")
TEXTS = ("text", "caption", "captions", "TEXT", "alt_text", "txt")
LABELS = ("label", "labels", "fine_label", "class")
CLASS_NAMES = ("class_name", "label_name", "category")
KINDS = "*.tar, *.parquet, *.array_record, metadata.jsonl, *.jsonl, *.csv, a folder of images, tfds:NAME/SPLIT, shapes"


def open_source(
    path: str | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    recipe: str | None = None,
    part: str | None = None,
) -> Any:
    """The source that a command line names.

    Args:
      path: a path or URL whose kind is recognised, "tfds:NAME/SPLIT", "shapes", or the dotted name of a component.
      overrides: [(field, value)] of `--source.FIELD=VALUE`, which win over what was recognised.
      recipe: `NAME|PATH|WORKDIR[:VARIANT]`, to take the source of a recipe instead of a path.
      part: of a mixture, the part to take.

    Raises: UserError, one line, for anything that is no source.
    """
    if bool(path) == bool(recipe):
        raise UserError("name either a source (a path, tfds:NAME/SPLIT, shapes) or --config=NAME, which has one.")
    config = ConfigDict({"source": recognise(path) if path else of_recipe(recipe)}, type_safe=False)
    try:
        override_all(config, [(f"source.{key}", value) for key, value in overrides])
        if part is not None or "parts" in config.source:
            config.source = _part(config.source, part)
        configs.check(config.source, "config.source")
    except UserError as error:
        raise UserError(str(error).replace("config.source", "--source")) from None
    source = configs.build(config.source)
    if not len(source):
        raise UserError(f"{source.name} is empty.")
    return source


def require_images(source: Any) -> None:
    """Raises: UserError for documents and codes, which are no pairs of image and caption."""
    if isinstance(source, Interleaved):
        raise UserError(f"{source.name} holds documents of texts and images: this tool takes images with captions.")
    if isinstance(source, ImageCodes):
        raise UserError(f"{source.name} holds codes of images: this tool takes images with captions.")


def of_recipe(spec: str) -> ConfigDict:
    """The node of a recipe's source. Raises UserError."""
    config = configs.load(spec)
    source = config.data.get("source") if "data" in config else None
    if source is None:
        raise UserError(f"--config={spec} has no data.source.")
    return source


def recognise(path: str) -> ConfigDict:
    """The node of the source that a path means, with what its files say about captions and classes.

    Raises: UserError where that cannot be told.
    """
    if path == "shapes":
        return bind("data.sources.shapes.Shapes")
    if path.startswith("tfds:"):
        return bind("data.sources.tfds.Tfds", path=path)
    if re.fullmatch(r"\w+(\.\w+)*\.[A-Z]\w*", path) and not Path(path).exists():
        configs.resolve(path)
        return bind(path)
    suffix = _suffix(path)
    folder = None if is_remote(path) else Path(path.removeprefix("file://")).expanduser()
    if folder is None or not folder.is_dir():
        if suffix not in TARGETS:
            raise UserError(_unknown(path, folder, suffix))
        return _of_files(suffix, path)
    if (folder / MANIFEST).is_file():
        return _of_manifest(folder)
    names = list(_names(folder))
    if found := next((name for name in names if name.name in LISTS), None):
        return bind(TARGETS[found.suffix], path=str(found if found.parent == folder else folder / "**" / found.name))
    suffixes = [name.suffix.lower() for name in names]
    if suffix := next((suffix for suffix in TARGETS if suffix in suffixes), None):
        return _of_files(suffix, path)
    if any(suffix in PICTURES for suffix in suffixes):
        beside = {} if ".txt" in suffixes else {"text": None, "class_folders": True}
        return bind("data.sources.folder.Folder", path=path, **beside)
    raise UserError(f"no data is recognised in the folder {path!r}: wanted is one of {KINDS}.")


def _suffix(path: str) -> str:
    """The extension of a path or pattern, lower-cased; of "data/{a,b}.tar" it is ".tar"."""
    return os.path.splitext(path.partition("?")[0] if is_remote(path) else path)[1].lower()


def _unknown(path: str, folder: Path | None, suffix: str) -> str:
    if folder is None or folder.exists() or re.search(r"[*{?\[]", path):
        return f"{path!r}: the end {suffix!r} says nothing about its kind: wanted is one of {KINDS}."
    near = folder.parent
    if not near.is_dir():
        return f"no {path!r}: there is no folder {str(near)!r}."
    return f"no {path!r} here: {closest(folder.name, [entry.name for entry in near.iterdir()] + ['shapes'])}"


def _names(folder: Path) -> Iterator[Path]:
    """Files below a folder, the first few thousand."""
    count = 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield Path(parent, name)
            count += 1
            if count == MOST_ENTRIES:
                return


def _of_files(suffix: str, path: str) -> ConfigDict:
    return bind(TARGETS[suffix], path=path, **(_columns(path) if suffix == ".parquet" else {}))


def _columns(path: str) -> dict[str, str]:
    """Columns of Parquet files that go by usual names."""
    from vlm_jax.data.sources.parquet_table import ParquetTable

    names = ParquetTable(path, 0).schemas[0].names
    usual = {"image_column": IMAGES, "text_column": TEXTS}
    usual |= {"class_name_column": CLASS_NAMES} if set(CLASS_NAMES) & set(names) else {"label_column": LABELS}
    found = {field: next((name for name in choices if name in names), None) for field, choices in usual.items()}
    return {field: name for field, name in found.items() if name}


def _of_manifest(folder: Path) -> ConfigDict:
    """What `tokenize` wrote; or `convert`, with all captions, and classes left to `--source.label`: not every record
    need have one."""
    manifest = read_manifest(folder)
    if "image_codes" in manifest:
        return bind("data.sources.image_codes.ImageCodes", path=str(folder))
    form = manifest["format"]
    if form == "folder":
        return bind(TARGETS[".jsonl"], path=str(folder / "*" / "metadata.jsonl"))
    if f".{form}" not in TARGETS:
        raise UserError(f"{folder / MANIFEST} says format={form!r}, which is none that this version knows.")
    texts = {"tar": {"text": ("json:text",)}, "parquet": {"text_column": "text"}}
    return bind(TARGETS[f".{form}"], path=str(folder), **texts.get(form, {}))


def _part(node: ConfigDict, part: str | None) -> ConfigDict:
    """The source of a part of a mixture."""
    parts = node.get("parts")
    if parts is None:
        raise UserError(f"--part={part}: {node['_target']} is no mixture.")
    if part not in parts:
        raise UserError(f"it is a mixture of several sources; name one of them as --part: {closest(part or '', parts)}")
    return parts[part].source
