"""Small programs that stand in for those of clouds and clusters: they write down how they were called."""

from __future__ import annotations

import os
import pathlib
import subprocess


def stand_in(folder: pathlib.Path, name: str, text: str = "") -> None:
    """A program `name` in `folder/bin`, which first appends its words to `folder/calls`."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\nfolder={folder}\necho "{name} $*" >>"$folder/calls"\n{text}\n')
    path.chmod(0o755)


def calls(folder: pathlib.Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def environment(folder: pathlib.Path, **more: str) -> dict[str, str]:
    """The stand-ins before everything else."""
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}


def bash(folder: pathlib.Path, script: str, **more: str) -> subprocess.CompletedProcess:
    """Runs a rendered script; half a minute is plenty for any that does not loop."""
    path = folder / "script.sh"
    path.write_text(script)
    command, env = ["bash", str(path)], environment(folder, **more)
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=30)
