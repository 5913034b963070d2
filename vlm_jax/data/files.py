"""The files that a path means: one, a folder's, a pattern's, of this machine or of a URL."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from vlm_jax.data.storage import File, Storage, filesystem, is_remote, local_file, remote_file
from vlm_jax.errors import UserError, closest
from vlm_jax.redact import hidden

MOST_NAMES = 1_000_000  # that braces may stand for
SHOWN = 3  # missing files that a message names


def find_files(
    path: str, suffixes: tuple[str, ...], storage: Storage | None = None, *, allow_missing: bool = False
) -> list[File]:
    """The files that `path` means, sorted by path, each once.

    Args:
      path: a file, a folder (all files below it that end in one of `suffixes`), or a pattern of `*`, `**`, `?`,
        `[ab]`, `{a,b}` and `{00000..00012}`; of this machine, or a URL that fsspec knows.
      allow_missing: names that braces spell out, and that are not there, come as files of size -1.

    Raises: UserError where there is no file, with the nearest name that exists, or where one that is spelt out is not
      there.
    """
    if not path:
        raise UserError(f"the path of the {suffixes[0]} files is empty: give a file, a folder or a pattern.")
    storage = storage or Storage()
    path = path.removeprefix("file://")
    given = path if is_remote(path) else str(Path(path).expanduser())
    names = expand_braces(given)
    find = _find_remote if is_remote(given) else _find_local
    found = {file.path: file for file in find(names, suffixes, storage)}
    missing = sorted(file.path for file in found.values() if file.size < 0)
    if len(found) == len(missing):
        raise UserError(_none(path, given, names, suffixes))
    if missing and not allow_missing:
        named = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise UserError(f"{len(missing)} of the {len(found)} files of {path!r} are not there: {named}.")
    return [found[name] for name in sorted(found)]


def expand_braces(pattern: str) -> list[str]:
    """All names that "x{a,b}y" and "x{08..11}y" stand for, as in a shell, each once.

    Raises: UserError for a range that runs backwards, or more than a million names.
    """
    names = _expand(pattern)
    if len(names) > MOST_NAMES:
        raise UserError(f"{pattern!r} stands for more than {MOST_NAMES} files.")
    return list(dict.fromkeys(names))


def _expand(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    names = []
    for choice in _choices(found[1], pattern):
        names += _expand(before + choice + after)
        if len(names) > MOST_NAMES:
            break
    return names


def _choices(text: str, pattern: str) -> Iterable[str]:
    limits = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not limits:
        return text.split(",")
    first, last = limits.groups()
    if int(first) > int(last):
        raise UserError(f"{pattern!r}: the range {{{text}}} runs backwards.")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 1
    return (f"{number:0{width}}" for number in range(int(first), int(last) + 1))


def _find_local(names: list[str], suffixes: tuple[str, ...], storage: Storage) -> Iterable[File]:
    for name in names:
        if os.path.isdir(name):
            below = (entry for entry in Path(name).rglob("*") if entry.name.endswith(suffixes))
            yield from (local_file(entry) for entry in below if entry.is_file() and not _hidden(entry, name))
        elif not os.path.exists(name) and glob.has_magic(name):
            matches = [match for match in glob.glob(name, recursive=True) if os.path.isfile(match)]
            if not matches and len(names) > 1:
                logging.warning("no file matches %s", hidden(name))
            yield from map(local_file, matches)
        else:
            try:
                yield local_file(name)
            except (FileNotFoundError, NotADirectoryError):
                yield File(name, -1)


def _hidden(entry: Path, folder: str) -> bool:
    return any(part.startswith(".") for part in entry.relative_to(folder).parts)


def _find_remote(names: list[str], suffixes: tuple[str, ...], storage: Storage) -> Iterable[File]:
    fs, _ = filesystem(names[0])
    web = names[0].startswith("http")
    ask = functools.partial(storage.attempt, timeout_s=storage.timeout_s)
    url = lambda path: path if is_remote(path) else fs.unstrip_protocol(path)
    listed: dict[str, dict[str, dict]] = {}
    for name in names:
        path = filesystem(name)[1]
        if any(sign in name for sign in ("*" if web else "*?[")):  # "?" begins the query of a web address
            found = ask(name, functools.partial(fs.glob, path, detail=True))
        else:
            info = _info(fs, path, ask, listed if len(names) > SHOWN and not web else None)
            found = {path: info or {"missing": True}}
            if info and info.get("type") == "directory":
                found = ask(name, functools.partial(fs.find, path, detail=True))
                found = {path: info for path, info in found.items() if path.endswith(suffixes)}
        for path, info in found.items():
            if info.get("missing"):
                yield File(url(path), -1)
            elif info.get("type") != "directory":
                yield remote_file(url(path), info)


def _info(fs, path: str, ask, listed: dict[str, dict[str, dict]] | None) -> dict | None:
    """What the file system says of a file, None if there is none; of many, by one listing of their folder."""
    try:
        if listed is None:
            return ask(path, functools.partial(fs.info, path))
        folder = path.rpartition("/")[0]
        if folder not in listed:
            entries = ask(folder, functools.partial(fs.ls, folder, detail=True))
            listed[folder] = {entry["name"].strip("/"): entry for entry in entries}
        return listed[folder].get(path.strip("/"))
    except FileNotFoundError:
        return None


def _none(path: str, given: str, names: list[str], suffixes: tuple[str, ...]) -> str:
    """Why there is no file at all."""
    if is_remote(given):
        return f"there is no file at {path!r}."
    if os.path.isdir(given):
        return f"no *{suffixes[0]} file in the folder {path!r}."
    if len(names) > 1 or glob.has_magic(given):
        return f"no file matches {path!r}."
    folder = Path(given)
    while not folder.is_dir():
        missing, folder = folder.name, folder.parent
    if (folder / missing).exists():
        return f"{str(folder / missing)!r} is a file, so that there is no {path!r}."
    near = closest(missing, (entry.name for entry in folder.iterdir()))
    return f"no {missing!r} in the folder {str(folder)!r}: {near}"
