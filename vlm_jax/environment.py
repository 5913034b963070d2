"""What a run runs on and with: versions, commit, flags, devices. It is kept with every checkpoint."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import vlm_jax

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What changes compiled programs or how they are run; nothing that could hold a password.
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
FLAG_PREFIXES = ("JAX_", "NCCL_")


@functools.cache
def describe() -> dict[str, Any]:
    """The environment as JSON: `vlm_jax`, `commit`, `python`, `packages`, `flags`, `devices`, `processes`.

    Starts jax's devices. `commit` ends in `+` where files were changed since; it is None outside a git checkout.
    """
    devices: dict[str, int] = {}
    for device in jax.devices():
        devices[device.device_kind] = devices.get(device.device_kind, 0) + 1
    return {
        "vlm_jax": vlm_jax.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "flags": {k: v for k, v in sorted(os.environ.items()) if k in FLAGS or k.startswith(FLAG_PREFIXES)},
        "devices": devices,
        "processes": jax.process_count(),
    }


@functools.cache
def commit() -> str | None:
    """The git commit of this package, with `+` where its files differ from it; None where there is no telling."""
    folder = Path(vlm_jax.__file__).parent
    ask = lambda *words: subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
        # An installed package may lie inside a repository of the user's.
        if Path(ask("rev-parse", "--show-toplevel")) != folder.parent.resolve():
            return None
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
