"""Files that appear whole or not at all, and leave nothing behind where their writer is killed."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def placed(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place at `path` when the block ends, and is deleted where it raises.

    Several threads, processes and hosts may place the same file. What killed processes of this host have left half
    written beside `path` is deleted.

    Raises: OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_left(path)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _delete_left(path: Path) -> None:
    begin = f".{path.name}.{socket.gethostname()}."
    for name in glob.glob(f"{glob.escape(begin)}*.part", root_dir=path.parent):
        writer = re.fullmatch(r"(\d+)\.\d+\.part", name.removeprefix(begin))
        if writer and not _lives(int(writer[1])):
            path.with_name(name).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
