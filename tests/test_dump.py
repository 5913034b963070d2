"""What a dump holds, and that nothing about it hides why the run ends. Whole runs: tests/faults/test_guards.py."""

import errno
import json
import os
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import dump
from vlm_jax.checkpoint import folder as checkpoints
from vlm_jax.checkpoint import load_params
from vlm_jax.errors import UserError
from vlm_jax.processes import Alone
from vlm_jax.replay import main as replay
from vlm_jax.state import TrainState

METRICS = {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(np.inf)}


@pytest.fixture
def run(tmp_path):
    """As much of one as a dump reads."""
    ids = np.stack([np.zeros(4, np.uint32), np.arange(8, 12, dtype=np.uint32)], axis=-1)
    return types.SimpleNamespace(
        workdir=tmp_path,
        link=Alone(),
        batch={"example_id": ids, "x": np.arange(4.0)},
        rows=np.arange(4),
        config=configs.load("siglip_tiny:short"),
        plan=types.SimpleNamespace(stacks={}),
        verdicts=types.SimpleNamespace(not_finite=1),
        warn=lambda line: None,
    )


def state(value: float) -> TrainState:
    return TrainState(jnp.int32(7), {"x": jnp.full(3, value)}, {}, {}, {}, {})


def test_a_run_that_stops_there_again_replaces_the_dump(run):
    """An earlier try of a job of two processes has left rows that are not of this batch."""
    folder = run.workdir / "dumps" / "7"
    with pytest.raises(UserError, match="step 7: loss nan"):
        dump.give_up(run, state(1), 7, METRICS)
    np.savez(folder / "batch-1.npz", rows=np.arange(2, 4), **{k: v[2:] + 1 for k, v in run.batch.items()})
    with pytest.raises(UserError, match="gradient norm inf: not finite, as 1 in a row; examples 8 to 11"):
        dump.give_up(run, state(2), 7, METRICS)
    np.testing.assert_array_equal(load_params(folder)[0]["x"], np.full(3, 2.0))
    np.testing.assert_array_equal(dump.read_batch(folder, 4)["x"], np.arange(4.0))
    assert not (folder / "batch-1.npz").exists()
    assert json.loads((folder / "dump.json").read_text())["example_ids"] == [8, 9, 10, 11]


def test_where_there_is_no_room_the_run_ends_as_it_would(run, monkeypatch):
    """By an error of the step that launchers do not try again, wherever in the dump the disk is full."""
    folder = run.workdir / "dumps" / "7"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ends = r"step 7: loss nan, .* examples 8 to 11 \(4\); .*dumps/7 could not be written \({}\)\.$"
    for place, name in ((np, "savez"), (dump, "replace_file")):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=ends.format("No space left on device")):
            patch.setattr(place, name, full)
            dump.give_up(run, state(1), 7, METRICS)
    with pytest.raises(UserError, match=ends.format("the state before the step is not saved")) as raised:
        monkeypatch.setattr(checkpoints, "no_room", lambda *_: "No space left on device")
        dump.give_up(run, state(1), 7, METRICS)
    assert raised.value.code == 2 and not (folder / "dump.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dump.json", "{", r"dump\.json is damaged \(JSONDecodeError"),
        ("dump.json", '{"step": 7, "metrics": {}, "example_ids": [1]}', r"dump\.json is damaged \(KeyError: 'loss'"),
        ("config.json", None, "is no whole dump: it has no config.json"),
    ],
)
def test_replay_of_what_is_no_whole_dump(run, name, content, message, capsys):
    folder = run.workdir / "dumps" / "7"
    dump.write(folder, run, state(1), 7, METRICS, [8])
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert replay([str(folder)]) == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)


def test_a_batch_that_is_not_all_there(run):
    folder = run.workdir / "dumps" / "7"
    dump.write(folder, run, state(1), 7, METRICS, [8])
    with pytest.raises(UserError, match=r"1 files batch-\*\.npz have 4 of the 8 rows of the batch"):
        dump.read_batch(folder, 8)
    path = folder / "batch-0.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"its batch cannot be read \(BadZipFile"):
        dump.read_batch(folder, 4)
    path.unlink()
    with pytest.raises(UserError, match=r"0 files batch-\*\.npz have 0 of the 4 rows"):
        dump.read_batch(folder, 4)
