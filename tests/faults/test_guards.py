"""Guards in the step: what they see, what they do, and that a restart or another mesh changes nothing of it."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Stepper, small_experiment
from vlm_jax import rewind, startup, tree
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.errors import UserError
from vlm_jax.health import guards
from vlm_jax.health.guards import Clip, Guards, Spikes
from vlm_jax.health.verdicts import Verdict, Verdicts
from vlm_jax.main import main
from vlm_jax.replay import main as replay
from vlm_jax.report import read_metrics

WINDOW = 16
RECIPE = Path(__file__).with_name("spoilt_tiny.py")


@functools.cache
def compiled(setting: Guards):
    return jax.jit(lambda memory, loss, norm: guards.judge(setting, memory, loss, norm))


def judged(setting: Guards, losses, norms, memory=None):
    """What is judged of each step, and the memory after the last."""
    judge, memory, found = compiled(setting), memory or setting.empty(), []
    for loss, norm in zip(losses, norms):
        judgement = judge(memory, jnp.float32(loss), jnp.float32(norm))
        memory = judgement.memory
        scale = 1.0 if judgement.scale is None else float(judgement.scale)
        found.append(
            {"good": bool(judgement.good), "scale": scale, **{k: float(v) for k, v in judgement.metrics.items()}}
        )
    return found, memory


def test_nothing_is_remembered_unless_asked_for():
    (found,), memory = judged(Guards(), [1.0], [1.0])
    assert found == {"good": True, "scale": 1.0, "skipped": 0.0} and memory == {}


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf), (-np.inf, 1.0)])
def test_what_is_not_finite_is_dropped_and_not_remembered(loss, norm):
    setting = Guards(clip=Clip(window=WINDOW), spikes=Spikes(window=WINDOW))
    _, memory = judged(setting, np.ones(WINDOW), np.ones(WINDOW))
    (found,), after = judged(setting, [loss], [norm], memory)
    assert not found["good"] and found["skipped"] == 1 and found["clipped"] == found["spikes"] == 0
    assert guards.to_json(after) == guards.to_json(memory)


def test_norms_are_clipped_against_the_quantile_of_the_last_ones():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(size=100)).astype(np.float32)
    setting = Guards(clip=Clip(quantile=0.75, factor=1.5, window=WINDOW))
    found, _ = judged(setting, np.ones(100), norms)
    clipped = 0
    for i, one in enumerate(found):
        most = 1.5 * np.quantile(norms[i - WINDOW : i], 0.75) if i >= WINDOW else np.inf
        assert norms[i] * one["scale"] == pytest.approx(min(norms[i], most), rel=1e-5)
        assert one["clipped"] == (norms[i] > most) and one["good"]
        clipped += norms[i] > most
    assert 5 < clipped < 50


def test_a_spike_is_far_above_the_median_of_the_last_losses():
    rng = np.random.default_rng(1)
    losses = (3 - 0.01 * np.arange(120) + 0.1 * rng.normal(size=120)).astype(np.float32)
    losses[[10, 40, 41, 77]] += 5.0  # the first comes before there is a window
    found, _ = judged(Guards(spikes=Spikes(window=WINDOW, action="skip")), losses, np.ones(120))
    assert [i for i, one in enumerate(found) if one["spikes"]] == [40, 41, 77]
    assert [i for i, one in enumerate(found) if not one["good"]] == [40, 41, 77]
    found, _ = judged(Guards(spikes=Spikes(window=WINDOW)), losses, np.ones(120))
    assert all(one["good"] for one in found) and sum(one["spikes"] for one in found) == 3


def test_a_level_that_has_changed_for_good_becomes_the_usual_one():
    losses = np.r_[np.full(40, 1.0), np.full(40, 2.0)] + 0.01 * np.sin(np.arange(80))
    found, _ = judged(Guards(spikes=Spikes(window=WINDOW, action="skip")), losses, np.ones(80))
    spikes = [i for i, one in enumerate(found) if one["spikes"]]
    assert spikes == list(range(40, 40 + WINDOW // 2))


def test_a_loss_that_never_varies_does_not_spike_by_rounding():
    losses = np.r_[np.full(30, 2.0), 2.0 + 1e-6, 2.1, 2.3]
    found, _ = judged(Guards(spikes=Spikes(window=WINDOW)), losses, np.ones(33))
    assert [one["spikes"] for one in found[30:]] == [0, 0, 1]


def test_a_memory_goes_through_json_bit_for_bit():
    setting = Guards(clip=Clip(window=WINDOW), spikes=Spikes(window=WINDOW))
    _, memory = judged(setting, np.random.default_rng(2).random(21), np.random.default_rng(3).random(21))
    saved = json.loads(json.dumps(guards.to_json(memory)))
    jax.tree.map(np.testing.assert_array_equal, guards.from_json(setting, saved), memory)
    assert guards.to_json(guards.from_json(setting, None)) == guards.to_json(setting.empty())
    wider = Guards(clip=Clip(window=2 * WINDOW), spikes=Spikes(window=WINDOW))
    assert guards.to_json(guards.from_json(wider, saved)) == {
        "grad_norm": {"last": [0.0] * 2 * WINDOW, "count": 0},
        "loss": saved["loss"],
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(quantile=0),
        lambda: Clip(factor=-1),
        lambda: Clip(window=2),
        lambda: Spikes(deviations=0),
        lambda: Spikes(in_a_row=0),
        lambda: Guards(not_finite=0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(UserError, match=r"guards.* must be|guards.* is a share"):
        make()


REWIND = Spikes(action="rewind", in_a_row=2)


@pytest.mark.parametrize(
    ("setting", "name", "bad", "wanted"),
    [
        (Guards(not_finite=3), "skipped", "..xx.xxx", {8: Verdict.STOP}),
        (Guards(not_finite=1), "skipped", "...x", {4: Verdict.STOP}),
        (Guards(not_finite=None), "skipped", "xxxxxxxx", {}),
        (Guards(not_finite=2), "skipped", "x.x.x.x.", {}),
        (Guards(spikes=REWIND), "spikes", ".x..xx", {6: Verdict.REWIND}),
        (Guards(spikes=Spikes(action="skip")), "spikes", "xxxxxx", {}),
    ],
)
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_verdict_is_about_the_newest_step(setting, name, bad, wanted, ahead):
    """`x` is a bad step. However many may be in flight, there is something to do right after the one it is about."""
    verdicts, found = Verdicts(setting, ahead), {}
    for step, mark in enumerate(bad, start=1):
        verdicts.add({"skipped": jnp.float32(0), name: jnp.float32(mark == "x")})
        if (verdict := verdicts.settle()) is not Verdict.GO_ON:
            found[step] = verdict
    assert found == wanted
    verdicts.settle(all_of_them=True)
    assert verdicts.troubled == bool(wanted)
    verdicts.forget()
    assert not verdicts.troubled and verdicts.not_finite == 0


@pytest.mark.full
def test_a_clipped_update_is_the_same_on_eight_devices(tmp_path):
    """Every norm above half the median of the last ones is clipped; plain SGD shows the gradient's size."""
    changes = {"optimizer__name": "sgd", "optimizer__momentum": "0.0", "optimizer__learning_rate": "1e-2"}
    setting = Guards(clip=Clip(quantile=0.5, factor=0.5, window=8), spikes=Spikes(window=8))
    experiment = dataclasses.replace(small_experiment(tmp_path, **changes), guards=setting)
    found = []
    for devices in (1, 8):
        stepper = Stepper.make(experiment, jax.devices()[:devices])
        state, clipped = startup.initialise(stepper.plan), []
        for _ in range(10):
            state, metrics = stepper.update(state, stepper.batch())
            jax.block_until_ready(state)
            clipped.append(float(metrics["clipped"]))
        stepper.batches.close()
        found.append((tree.flatten(jax.device_get(state.params)), clipped, guards.to_json(state.guard)))
    (one, clipped, memory), (eight, *rest) = found
    assert clipped == [0.0] * 8 + [1.0] * 2 and rest[0] == clipped
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=1e-6, err_msg=name)
    for ring in memory:
        assert rest[1][ring]["last"] == pytest.approx(memory[ring]["last"], rel=1e-4)


# Whole runs


def run(workdir, *flags: str, **changes: str) -> int:
    arguments = [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return main([f"--config={RECIPE}", f"--workdir={workdir}", *flags, *arguments])


def fingerprints(workdir) -> dict[str, str]:
    return read_meta(workdir / "checkpoints" / str(latest_step(workdir)))["fingerprints"]


def test_a_run_stops_at_losses_that_stay_not_finite_and_leaves_a_dump(tmp_path, capsys, monkeypatch):
    """Steps of 16 examples: the third is skipped; the fifth, sixth and seventh are too many."""
    monkeypatch.setenv("VLM_JAX_TRUST", "tests")
    spans = {"task__not_finite": "((40,41),(64,999))", "guards__not_finite": "3"}
    assert run(tmp_path / "run", **spans) == 2
    printed = capsys.readouterr()
    dump = tmp_path / "run" / "dumps" / "7"
    assert printed.err == (
        "error: step 7: loss nan, gradient norm nan: not finite, as 3 in a row; examples 96 to 111 (16); "
        f"`python -m vlm_jax.replay {dump}` does it again.\n"
    )
    assert latest_step(tmp_path / "run") == 4  # no checkpoint was made in the trouble
    skipped = [line["train/skipped"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert skipped == [0, 0, 1, 0, 1, 1]
    assert replay([str(dump)]) == 0
    said = capsys.readouterr().out
    assert "step 7, 16 examples from 96 to 111" in said and "loss nan, in the run nan\n" in said
    assert "parameters that are not finite: 0 of" in said and "  image/blocks/00/mlp/fc2/bias: 16 values" in said
    about = json.loads((dump / "dump.json").read_text())
    assert about["example_ids"] == list(range(96, 112))
    (dump / "dump.json").write_text(json.dumps(about | {"metrics": {"loss": "2.5", "grad_norm": "nan"}}))
    config = json.loads((dump / "config.json").read_text())
    config["mesh"]["data"] = 3  # of the eight devices here
    (dump / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(dump)
    assert replay(["."]) == 1 and "loss nan, in the run 2.5: not the same" in capsys.readouterr().out


LEAPS = {
    "task__leaps": "((144,176),)",  # steps 10 and 11
    "guards__spikes": "health.guards.Spikes",
    "guards__spikes__window": "8",
    "guards__spikes__in_a_row": "2",
    "guards__spikes__action": "rewind",
    "total_examples": "224",
}


@pytest.mark.full
def test_a_spike_takes_the_run_back_and_its_data_are_left_out(tmp_path, capsys):
    assert run(tmp_path / "run", **LEAPS) == 0
    out = capsys.readouterr().out
    assert "step 11: the loss leaps; back to step 8, leaving out the 48 examples since then" in out
    assert rewind.notes(tmp_path / "run") == [{"step": 11, "to": 8, "data": 128, "next_index": 176}]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 15)) and max(line["train/loss"] for line in lines) < 50
    assert [line["train/examples_seen"] for line in lines[7:10]] == [128, 192, 208]
    assert latest_step(tmp_path / "run") == 14
    seconds = json.loads((tmp_path / "run" / "goodput.json").read_text())["seconds"]
    assert seconds["repeated steps"] > 0  # 9 to 11, done twice


@pytest.mark.full
def test_a_rewound_run_that_is_killed_goes_on_as_if_it_was_not(tmp_path, capsys):
    """From the checkpoint it went back to, and from before, where it meets the spike again."""
    assert run(tmp_path / "run", **LEAPS) == 0
    whole = fingerprints(tmp_path / "run")
    for lost in ((12, 14), (8, 12, 14)):
        shutil.copytree(tmp_path / "run", tmp_path / f"{len(lost)}")
        for step in lost:
            shutil.rmtree(tmp_path / f"{len(lost)}" / "checkpoints" / str(step))
        capsys.readouterr()
        assert run(tmp_path / f"{len(lost)}", **LEAPS) == 0
        assert fingerprints(tmp_path / f"{len(lost)}") == whole
        assert ("the loss leaps" in capsys.readouterr().out) == (len(lost) == 3)


@pytest.mark.full
def test_a_run_that_leaps_wherever_it_goes_on_stops(tmp_path, capsys):
    assert run(tmp_path / "run", **{**LEAPS, "task__leaps": "((144,9999),)", "guards__spikes__rewinds": "2"}) == 2
    assert "the loss leaps again after 2 rewinds to step 8; examples" in capsys.readouterr().err


@pytest.mark.full
def test_a_run_with_guards_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    clip = {"guards__clip": "health.guards.Clip", "guards__clip__window": "8", "guards__clip__factor": "0.01"}
    spikes = {"guards__spikes": "health.guards.Spikes", "guards__spikes__window": "8"}
    assert run(tmp_path / "whole", **clip, **spikes) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "12")
    assert run(tmp_path / "again", **clip, **spikes) == 0
    of = lambda name: read_meta(tmp_path / name / "checkpoints" / "12")
    assert of("again")["fingerprints"] == of("whole")["fingerprints"] and of("again")["guard"] == of("whole")["guard"]
    lines = read_metrics(tmp_path / "again" / "metrics.jsonl")
    assert sum(line.get("train/clipped", 0) for line in lines) > 0
