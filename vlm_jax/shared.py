"""Folders that all hosts of a run must see alike: its workdir, and the cache of compiled programs."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import jax

from vlm_jax.errors import UserError
from vlm_jax.processes import Alone, Link

# Seconds that a network's filesystem may take to show one host what another has written.
SHARED = 90.0


def see_alike(file: Path, content: bytes, link: Alone | Link) -> None:
    """Raises UserError where a process does not see what the first one has written: the workdir is not shared."""
    link.gather(None)
    deadline = time.monotonic() + SHARED
    while not (file.is_file() and file.read_bytes() == content):
        if time.monotonic() > deadline:
            raise UserError(f"{file.parent} is not the folder that process 0 writes to; give one that all hosts share.")
        time.sleep(0.5)


def compilation_cache(folder: str | None, link: Alone | Link) -> None:
    """Keeps compiled programs in a folder, where there is one and all processes see it."""
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    path = Path(folder).expanduser()
    if not is_shared(path, link):
        link.say(f"warning: config.compilation_cache={folder} is not one folder on all hosts; programs are not kept")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def is_shared(folder: Path, link: Alone | Link) -> bool:
    """Whether all processes see what the first one writes to a folder, that is, have the same programs in a cache.

    Only the first one writes a cache, and compilers of GPUs wait for one another to try kernels: a process that has
    the program must not leave those waiting that lack it.
    """
    if link.count == 1:
        return True
    mark = folder / f"seen-{secrets.token_hex(8)}"
    try:
        if link.index == 0:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    except OSError:
        pass
    name = link.gather(mark.name)[0]
    seen = all(link.gather((folder / name).exists()))
    if link.index == 0:
        mark.unlink(missing_ok=True)
    return seen
