"""The commands of docs/processes.md, as two people would give them at two terminals."""

import pytest

from tests.multi.jobs import ROOT
from tests.test_docs import blocks, commands
from vlm_jax.checkpoint import latest_step


@pytest.mark.full
def test_two_terminals(launch, tmp_path):
    first, second = (next(commands(block.text)) for block in blocks(ROOT / "docs/processes.md")[:2])
    assert first[:-1] == second[:-1] and (first[-1], second[-1]) == ("--process_id=0", "--process_id=1")
    flags = [word for word in first[2:] if not word.startswith(("--coordinator", "--num_processes", "--process_id"))]
    launch(2, *flags, folders=[tmp_path, tmp_path], devices=1).done()
    assert latest_step(tmp_path / "workdirs" / "two") == 60
