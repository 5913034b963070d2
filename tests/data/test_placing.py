import os
import socket
import subprocess
import sys

import pytest

from vlm_jax.data.placing import placed


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_or_not_at_all(tmp_path):
    with placed(tmp_path / "new" / "x") as file:
        file.write(b"one")
        assert not (tmp_path / "new" / "x").exists()
    with pytest.raises(KeyError), placed(tmp_path / "new" / "x") as file:
        file.write(b"tw")
        raise KeyError
    assert (tmp_path / "new" / "x").read_bytes() == b"one" and names(tmp_path / "new") == ["x"]


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    stay = [f".x.{here}.{os.getpid()}.7.part", f".x.elsewhere.{dead.pid}.7.part", f".y.{here}.{dead.pid}.7.part"]
    for name in (f".x.{here}.{dead.pid}.7.part", *stay):
        (tmp_path / name).write_bytes(b"half")
    with placed(tmp_path / "x") as file:
        file.write(b"whole")
    assert names(tmp_path) == sorted([*stay, "x"])
