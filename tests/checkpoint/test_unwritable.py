"""Saves that fail: told in a line, tried again, and nothing that was there before is lost."""

import errno
import os
import resource
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.small_runs import assert_identical, shapes
from vlm_jax.checkpoint import Store, folder, store
from vlm_jax.errors import UserError


def items(step: int) -> dict:
    return {"params": {"x": jnp.asarray(np.random.default_rng(step).normal(size=(200, 200)), jnp.float32)}}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def one_saved(tmp_path, lines, monkeypatch):
    """A store with step 1 on disk, that is asked to try again at once where a save fails."""
    monkeypatch.setattr(store, "FIRST_RETRY", 0.0)
    with Store(tmp_path, warn=lines.append) as kept:
        kept.save(1, items(1), {})
        assert kept.wait() and not kept.overdue()
        yield kept


def on_disk(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "checkpoints").iterdir()}


def check_steps(tmp_path, *steps: int) -> None:
    assert on_disk(tmp_path) == {str(step) for step in steps}
    step, found, _ = Store(tmp_path, warn=pytest.fail).restore_latest(shapes(items(0)))
    assert step == steps[-1]
    assert_identical(found, items(step))


def test_a_disk_without_room_is_not_written_to(tmp_path, one_saved, lines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(folder, "no_room", lambda *_: "No space left on device")
        one_saved.save(2, items(2), {})
        assert not one_saved.wait() and one_saved.overdue()
    assert lines == [
        "checkpoint 2 could not be saved (No space left on device); training goes on, the last checkpoint is 1"
    ]
    check_steps(tmp_path, 1)
    one_saved.save(3, items(3), {})
    assert one_saved.wait() and not one_saved.overdue() and len(lines) == 1
    check_steps(tmp_path, 1, 3)


def test_a_disk_that_fills_while_a_save_is_written(tmp_path, one_saved, lines):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # of a file: the arrays' is larger, others are smaller
    try:
        one_saved.save(2, items(2), {})
        assert not one_saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = lines
    assert line == "checkpoint 2 could not be saved (File too large); training goes on, the last checkpoint is 1"
    check_steps(tmp_path, 1)  # and the half of 2 is gone
    assert one_saved.overdue()
    one_saved.save(2, items(2), {})
    assert one_saved.wait() and not one_saved.overdue() and len(lines) == 1
    check_steps(tmp_path, 1, 2)


def test_a_save_that_only_another_process_could_not_write_has_failed(one_saved, lines, monkeypatch):
    one_saved.save(2, items(2), {})
    with monkeypatch.context() as patch:
        patch.setattr(one_saved, "_any", lambda flag: True)
        assert not one_saved.wait()
    (line,) = lines
    assert line.endswith("(another process could not write it); training goes on, the last checkpoint is 1")
    assert one_saved.last == 1 and one_saved.overdue()


def test_a_save_is_good_though_older_ones_could_not_be_deleted(tmp_path, one_saved, lines, monkeypatch):
    rmtree = shutil.rmtree

    def refused(path, *arguments, **named):
        if Path(path).name == "1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        rmtree(path, *arguments, **named)

    one_saved.close()
    with Store(tmp_path, keep=1, warn=lines.append) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", refused)
            kept.save(2, items(2), {})
            assert kept.wait() and kept.last == 2
        assert lines == ["checkpoint 2 is saved; older ones could not be deleted (Permission denied)"]
        check_steps(tmp_path, 1, 2)
        kept.save(3, items(3), {})
        assert kept.wait() and len(lines) == 1
    check_steps(tmp_path, 3)  # and they go with the next one


def test_what_is_on_disk_though_it_was_told_as_failed_is_not_saved_again(tmp_path, one_saved, monkeypatch):
    one_saved.save(2, items(2), {"data": {"next_index": 5}})
    with monkeypatch.context() as patch:
        patch.setattr(one_saved, "_any", lambda flag: True)
        assert not one_saved.wait()
    one_saved.save(2, items(2), {"data": {"next_index": 5}})
    assert one_saved.wait() and one_saved.last == 2
    check_steps(tmp_path, 1, 2)
    for other in ((items(3), {"next_index": 5}), (items(2), {"next_index": 6})):
        with pytest.raises(UserError, match="2 is a checkpoint of another run"), Store(tmp_path) as store_of_another:
            store_of_another.save(2, other[0], {"data": other[1]})


def test_what_no_room_finds(tmp_path):
    assert folder.no_room(tmp_path / "new", 1000) is None and list((tmp_path / "new").iterdir()) == []
    assert "GB free" in folder.no_room(tmp_path, 2**62)
    (tmp_path / "file").write_text("")
    assert folder.no_room(tmp_path / "file" / "checkpoints", 1) == "Not a directory"
