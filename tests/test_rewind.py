"""The order in which a run goes back, and what it does where a disk takes nothing. Whole runs: tests/faults/."""

import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from vlm_jax import dump, rewind
from vlm_jax.checkpoint import Store
from vlm_jax.health.phases import Phases
from vlm_jax.processes import Alone
from vlm_jax.report import Writers
from vlm_jax.state import TrainState


def state() -> TrainState:
    return TrainState(jnp.int32(7), {"x": jnp.ones(3)}, {}, {}, {}, {})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """As much of one as a rewind reads, with checkpoints of steps 2 and 4 and rows 20 and 40."""
    store = Store(tmp_path)
    for step in (2, 4):
        store.save(step, {"params": {"x": jnp.full(3, float(step))}}, {"data": {"next_index": 10 * step}})
    store.wait()
    spikes = SimpleNamespace(rewinds=2, leave_out=0)
    data = SimpleNamespace(first_example=lambda row: row)
    plan = SimpleNamespace(placed=state, experiment=None)
    lines, replaced = [], []
    run = SimpleNamespace(
        experiment=SimpleNamespace(guards=SimpleNamespace(spikes=spikes), batch_size=5, data=data),
        batches=SimpleNamespace(state=lambda gather: {"next_index": 55}),
        chrono=SimpleNamespace(restart=lambda step: None),
        verdicts=SimpleNamespace(forget=lambda: None),
        replace_batches=replaced.append,
        writers=Writers([], lines.append),
        phases=Phases(),
        link=Alone(),
        workdir=tmp_path,
        rewinds=[],
        store=store,
        plan=plan,
        warn=lines.append,
        lines=lines,
        replaced=replaced,
    )
    monkeypatch.setattr(rewind.startup, "from_items", lambda plan, step, items, guard: (step, items))
    yield run
    store.close()


def test_a_note_is_left_and_the_old_state_let_go_before_the_other_is_read(run, monkeypatch):
    old, restore = state(), run.store.restore_latest

    def restored(abstract):
        assert rewind.notes(run.workdir) == [{"step": 6, "to": 4, "data": 40, "next_index": 55}]
        assert old.params["x"].is_deleted()
        return restore(abstract)

    monkeypatch.setattr(run.store, "restore_latest", restored)
    step, items = rewind.rewind(run, old, 6, {})
    assert step == 4 and items["params"]["x"].tolist() == [4.0] * 3
    assert run.replaced == [{"next_index": 55}]


def test_of_a_damaged_checkpoint_and_the_one_before_there_is_a_note_each(run):
    (run.workdir / "checkpoints" / "4" / "params" / "manifest.ocdbt").unlink()
    assert rewind.rewind(run, state(), 6, {})[0] == 2
    assert [(note["to"], note["data"]) for note in rewind.notes(run.workdir)] == [(4, 40), (2, 20)]


def test_without_a_checkpoint_the_state_stays(run):
    run.store.close()
    shutil.rmtree(run.workdir / "checkpoints")
    old = state()
    assert rewind.rewind(run, old, 6, {}) is None and not old.params["x"].is_deleted()


def test_notes_that_a_full_disk_does_not_take_count(run, monkeypatch):
    """And they are written with the next one."""

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rewind.report, "replace_file", full)
        assert rewind.rewind(run, state(), 6, {})[0] == 4
    assert rewind.notes(run.workdir) == []
    assert run.lines[0] == "rewinds.jsonl could not be written (No space left on device); training goes on"
    rewind.rewind(run, state(), 8, {})
    assert [note["step"] for note in rewind.notes(run.workdir)] == [6, 8]

    class GivenUp(Exception):
        pass

    def give_up(*arguments):
        raise GivenUp(arguments[-1])

    monkeypatch.setattr(dump, "give_up", give_up)
    with pytest.raises(GivenUp, match="the loss leaps again after 2 rewinds to step 4"):
        rewind.rewind(run, state(), 10, {})
