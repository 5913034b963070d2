"""The loop: restore, data, step, log, evaluate, save. Read it from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from vlm_jax import dump, startup
from vlm_jax.checkpoint.fingerprint import differing, fingerprint
from vlm_jax.errors import UserError
from vlm_jax.experiment import Experiment
from vlm_jax.health.phases import CHECKPOINTS
from vlm_jax.health.verdicts import Verdict
from vlm_jax.health.watchdog import watched
from vlm_jax.processes import Alone, Link
from vlm_jax.rewind import rewind
from vlm_jax.run import Run
from vlm_jax.stop import Stop


def train(
    experiment: Experiment,
    config: Mapping,
    workdir: Path,
    allow_change: bool = False,
    link: Alone | Link = Alone(),
    began: float | None = None,
    stop: Stop | None = None,
) -> int:
    """Trains to the end, or goes on from where the workdir stands; returns the exit code.

    `began` is when the start-up did, in seconds of `time.monotonic`; now unless given. `stop` is what signals set; None
    leaves them to the caller.
    """
    stop = stop or Stop()
    with watched(experiment.stalls, link.end, began) as phases:
        run = Run.open(experiment, config, workdir, allow_change=allow_change, link=link, phases=phases)
        with run.progress, stop.only_asked():
            try:
                return _loop(run, stop)
            finally:
                with phases.during(CHECKPOINTS):  # it may wait for one
                    run.close()


def _loop(run: Run, stop: Stop) -> int:
    state, total = run.start.state, run.total
    step = first = saved = int(state.step)
    owed = False
    window: list[dict[str, jax.Array]] = []
    run.progress.update(step)
    while step < total and not run.agreed(stop):
        # The order matters: the batch is asked for after the last save, so that a checkpoint's data state and its
        # parameters have seen the same examples.
        run.begin(step)
        state, metrics = run.update(state, run.next_batch())
        step += 1
        window.append(metrics)
        names, saving = run.due_evaluators(step, step == total), owed or run.due_save(step)
        # Before a pause all is waited for: the steps in flight are training, and not part of it.
        verdict = run.judge(metrics, all_of_them=bool(names) or saving or step in (first + 1, total))
        if verdict is not Verdict.GO_ON:
            with run.phases.during(CHECKPOINTS):  # a dump takes as long as one
                if verdict is Verdict.STOP:
                    dump.give_up(run, state, step, metrics)
                back = rewind(run, state, step, metrics)
            if back:
                state, window, owed = back, [], False
                step = saved = int(state.step)
                continue
        if step == first + 1:
            run.chrono.restart(step)
        if run.due("log", step) or step in (first + 1, total):
            run.log(step, window)
            window = []
        else:
            run.progress.update(step)
        owed = saving and run.verdicts.troubled  # a checkpoint is of a step that no guard has doubts about
        if names or (saving and not owed):
            with run.chrono.pause():
                if names:
                    run.evaluate(state, step, names)
                if saving and not owed:
                    run.save(state, step)
                    saved = step
    if window:
        run.log(step, window)
    if saved < step:
        run.save(state, step)
    stopped = step < total
    if not run.finish(state, step, stopped):
        return 1
    return stop.exit_code if stopped else 0


def evaluate_only(experiment: Experiment, config: Mapping, workdir: Path, link: Alone | Link = Alone()) -> int:
    """Every evaluator on the workdir's last good checkpoint (or `resume`, `init_from`)."""
    with watched(experiment.stalls, link.end) as phases:
        run = Run.open(experiment, config, workdir, data=False, link=link, phases=phases)
        with run.progress:
            try:
                run.evaluate(run.start.state, int(run.start.state.step), list(experiment.evals))
                run.write_report()
            finally:
                run.close()
    return 0


def dry_run(experiment: Experiment, config: Mapping, folder: Path, link: Alone | Link = Alone()) -> int:
    """One step, every evaluator, one save and one restore that is compared bit for bit, in a folder to throw away."""
    run = Run.open(dataclasses.replace(experiment, resume=None, wandb=None), config, folder, link=link)
    with run.progress:
        try:
            state, metrics = run.update(run.start.state, run.next_batch())
            run.log(1, [metrics])
            run.evaluate(state, 1, list(experiment.evals))
            run.save(state, 1)
            if not run.store.wait():
                raise UserError("the checkpoint could not be saved; the line above says why.")
            again = startup.begin(run.plan, run.store, run.warn).state
            if wrong := differing(fingerprint(state), fingerprint(again)):
                raise UserError(f"the restored state differs from the saved one in {wrong[0]}; do not start this run.")
            run.write_report()
            run.progress.note("dry run: step, evaluators, save and restore all worked")
        finally:
            run.close()
    return 0
