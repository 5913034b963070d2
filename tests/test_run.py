from types import SimpleNamespace

import pytest

from tests.helpers import small_experiment
from vlm_jax import config as configs
from vlm_jax.errors import UserError
from vlm_jax.health.phases import Phases
from vlm_jax.processes import Alone
from vlm_jax.run import Run
from vlm_jax.state import TrainState


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return small_experiment(tmp_path_factory.mktemp("assets"), milestone_steps="4")


@pytest.mark.parametrize(
    "last, step, passed",
    [(None, 3, False), (None, 4, True), (3, 4, True), (4, 5, False), (3, 5, True), (4, 7, False), (7, 12, True)],
)
def test_a_milestone_that_could_not_be_saved_is_the_next_checkpoint(experiment, last, step, passed):
    run = SimpleNamespace(experiment=experiment, store=SimpleNamespace(last=last))
    assert Run.passes_milestone(run, step) is passed


def test_a_milestone_that_fails_behind_is_the_next_checkpoint(experiment):
    """Step 4 is being written when the save of step 5 begins, and turns out to have failed."""
    saved = {}

    class Failing:
        last = 4

        def wait(self):
            self.last = 3

        def save(self, step, items, meta):
            saved[step] = meta["milestone"]

    run = SimpleNamespace(experiment=experiment, store=Failing(), phases=Phases(), link=Alone())
    run.config = configs.fill(configs.load("siglip_tiny:short"))
    run.batches = SimpleNamespace(state=lambda gather: {})
    run.passes_milestone = lambda step: Run.passes_milestone(run, step)
    Run.save(run, TrainState(5, {}, {}, {}, {}, {}), 5)
    assert saved == {5: True}


def test_data_that_were_taken_though_changed_are_taken_again(monkeypatch):
    """After a rewind: the state of the checkpoint is of the data that the run began with."""
    opened = []
    monkeypatch.setattr("vlm_jax.run.open_batches", lambda *arguments: opened.append(arguments))
    run = SimpleNamespace(batches=SimpleNamespace(close=lambda: None), plan="plan", allow_change=True)
    Run.replace_batches(run, {"next_index": 3})
    assert opened == [("plan", {"next_index": 3}, True)]


def test_there_are_none_unless_asked_for(tmp_path):
    run = SimpleNamespace(experiment=small_experiment(tmp_path), store=SimpleNamespace(last=None))
    assert not Run.passes_milestone(run, 100)


def test_two_units_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="milestone_steps=4 and milestone_percent=10 are both given"):
        small_experiment(tmp_path, milestone_steps="4", milestone_percent="10")
