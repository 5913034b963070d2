"""What the loop works with: devices, state, data, files, and what each of its verbs does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import config as configs
from vlm_jax import environment, flops, program, report, rewind, shared, startup
from vlm_jax import mesh as meshes
from vlm_jax.batches import open_batches
from vlm_jax.checkpoint import Store
from vlm_jax.chrono import Chrono
from vlm_jax.errors import UserError
from vlm_jax.evaluate import results
from vlm_jax.evaluate.base import Result
from vlm_jax.experiment import Experiment
from vlm_jax.health import guards
from vlm_jax.health.goodput import Ledger
from vlm_jax.health.phases import CHECKPOINTS, COMPILE, DATA, EVALUATION, STEPS, Phases
from vlm_jax.health.pulse import Pulse, forget_others
from vlm_jax.health.verdicts import Verdict, Verdicts
from vlm_jax.optim import merge
from vlm_jax.processes import Alone, Link
from vlm_jax.redact import hidden, hidden_in
from vlm_jax.state import TrainState
from vlm_jax.step import variables_of
from vlm_jax.stop import Stop

# Metrics of which a line has the sum since the one before.
COUNTED = {"skipped", "clipped", "spikes"}
# Seconds between tries of the last save.
LAST_TRIES = (1.0, 5.0, 20.0)


@dataclasses.dataclass
class Run:
    """What the loop works with."""

    experiment: Experiment
    config: Mapping
    workdir: Path
    plan: startup.Plan
    start: startup.Start
    store: Store
    writers: report.Writers
    progress: report.Progress
    chrono: Chrono
    update: Callable
    batches: Any
    rows: np.ndarray
    phases: Phases
    verdicts: Verdicts
    ledger: Ledger | None = None
    pulse: Pulse | None = None
    link: Alone | Link = Alone()
    batch: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    compiled: bool = False
    artifacts: dict[str, Any] = dataclasses.field(default_factory=dict)
    tracing: bool = False
    unreadable_told: float = 0.0
    allow_change: bool = False
    rewinds: list[rewind.Note] = dataclasses.field(default_factory=list)

    @classmethod
    def open(
        cls,
        experiment: Experiment,
        config: Mapping,
        workdir: Path,
        *,
        data: bool = True,
        allow_change: bool = False,
        link: Alone | Link = Alone(),
        phases: Phases | None = None,
    ) -> Run:
        """Devices, state, data and files, in the order in which mistakes are cheapest.

        `data=False` opens no training data; `allow_change` takes data that is not what the run began with.
        """
        for evaluator in experiment.evals.values():
            evaluator.check_files()
        shared.compilation_cache(experiment.compilation_cache, link)
        plan = startup.make_plan(experiment, jax.devices())
        progress = report.Progress(experiment.clock.total, quiet=jax.process_index() > 0)
        warn = lambda line: progress.note(f"warning: {line}")
        first = jax.process_index() == 0
        store = Store(workdir, keep=experiment.keep_checkpoints, stacks=plan.stacks, warn=warn)
        start = startup.begin(plan, store, warn)
        step = int(start.state.step)
        phases = phases or Phases()
        batches = ledger = pulse = None
        if data:
            if start.data is not None:
                noted = rewind.of_checkpoint(link.gather(rewind.notes(workdir))[0], step, start.data)
                start = dataclasses.replace(start, data=rewind.moved(start.data, noted))
            batches = open_batches(plan, start.data, allow_change)
            done = max((line["step"] for line in report.read_metrics(workdir / "metrics.jsonl")), default=0)
            ledger = Ledger(workdir / "goodput.json" if first else None, phases, int(done))
        # The run is accepted: from here on the workdir is its own.
        writers = report.Writers(_files(experiment, config, workdir) if first else [], warn)
        if data and first:
            report.replace_file(workdir / "config.json", configs.to_json(config).encode())
            writers.truncate_after(step)
        if data:
            shared.see_alike(workdir / "config.json", configs.to_json(config).encode(), link)
            if first:
                forget_others(workdir / "heartbeats", link.count)
            pulse = Pulse(workdir / "heartbeats", link.index, phases, ledger, experiment.stalls.heartbeat)
        chrono = Chrono(
            batch_size=experiment.examples,
            total=experiment.clock.total,
            step=step,
            flops=program.model_flops(plan),
            devices=plan.mesh.size,
            peak_tflops=experiment.peak_tflops or flops.peak_tflops(plan.mesh.devices.flat[0].device_kind),
        )
        run = cls(
            experiment,
            config,
            workdir,
            plan,
            start,
            store,
            writers,
            progress,
            chrono,
            program.update_of(plan),
            batches,
            meshes.local_rows(plan.mesh, experiment.batch_size),
            phases,
            Verdicts(experiment.guards, _ahead(plan.mesh)),
            ledger,
            pulse,
            link,
            allow_change=allow_change,
        )
        run.introduce()
        return run

    @property
    def total(self) -> int:
        return self.experiment.clock.total

    def warn(self, line: str) -> None:
        self.progress.note(f"warning: {line}")

    def introduce(self) -> None:
        """What runs where, and what the user should know before it does."""
        params = sum(x.size for x in jax.tree.leaves(merge(self.plan.abstract.params, self.plan.abstract.frozen)))
        kind, devices = self.plan.mesh.devices.flat[0].device_kind, self.plan.mesh.size
        self.progress.note(
            f"{self.workdir}: {params / 1e6:.2f}M parameters, {self.total} steps of {self.experiment.batch_size} on "
            f"{devices} x {kind}; {self.start.message}"
        )

    def agreed(self, stop: Stop) -> bool:
        """Whether all processes stop before the next step: one that stops alone leaves the others waiting."""
        stop.agreed = self.link.stops(stop.signal)
        if stop.agreed is None:
            return False
        self.verdicts.settle(all_of_them=True)
        return not self.verdicts.troubled  # a few steps later it is over, or there is something to be done about it

    def begin(self, step: int) -> None:
        """The step after the first `step` ones begins."""
        self.profile(step)
        self.phases.enter(STEPS if self.compiled else COMPILE)
        self.phases.step, self.phases.repeating = step, self.ledger.repeats(step)
        self.compiled = True

    def next_batch(self) -> dict[str, jax.Array]:
        """The next batch, on the devices; only what the task reads is sent."""
        with self.phases.during(DATA):
            self.batch = batch = next(self.batches)
        wanted = self.experiment.task.batch_spec(self.experiment.batch_size)
        if missing := [name for name in wanted if name not in batch]:
            raise UserError(
                f"the task reads {', '.join(missing)}, which config.data does not give: it gives {', '.join(batch)}."
            )
        return meshes.put({k: batch[k] for k in wanted}, self.rows, self.experiment.batch_size, self.plan.mesh)

    def judge(self, metrics: dict[str, jax.Array], all_of_them: bool) -> Verdict:
        """Waits for steps in flight, all or but the last few, and says what is to be done."""
        self.verdicts.add(metrics)
        return self.verdicts.settle(all_of_them)

    def replace_batches(self, state: dict) -> None:
        """Goes on with the data from where the state says."""
        self.batches.close()
        self.batches = open_batches(self.plan, state, self.allow_change)

    def due(self, name: str, step: int) -> bool:
        """Whether `log`, `checkpoint`, `milestone` or `evaluate` falls on this step."""
        defaults = {"log": max(1, min(50, self.total // 20)), "checkpoint": max(1, self.total // 5)}
        every = self.experiment.clock.steps(self.experiment, name, defaults.get(name))
        return bool(every) and step % every == 0

    def due_evaluators(self, step: int, last: bool) -> list[str]:
        """The evaluators of this step; after the last one, all."""
        clock, names = self.experiment.clock, []
        for name, evaluator in self.experiment.evals.items():
            every = clock.steps(evaluator, "every", clock.steps(self.experiment, "evaluate"))
            # One that falls just before the end would be done twice.
            if last or (every and step % every == 0 and self.total - step >= every / 2):
                names.append(name)
        return names

    def log(self, step: int, window: list[dict[str, jax.Array]]) -> None:
        """Writes the last step's metrics and the speed since the last time."""
        window = jax.device_get(window)
        values = {name: float(value) for name, value in window[-1].items()}
        for name in COUNTED & values.keys():
            values[name] = sum(float(metrics[name]) for metrics in window)
        data = self.batches.state(self.link.gather)
        values["examples_seen"] = float(self.experiment.data.first_example(data["next_index"]))
        values["unreadable"] = float(data["unreadable"])
        values.update(self.batches.metrics())
        values.update(self.chrono.read(step, self.batches.wait_seconds()))
        self.writers.write(step, {f"train/{name}": value for name, value in values.items()})
        self.progress.update(step, values)
        for note in self.unreadable() if values["unreadable"] > self.unreadable_told else []:
            self.warn(note)
        self.unreadable_told = values["unreadable"]
        if values["skipped"]:
            self.warn(f"{values['skipped']:.0f} of the last {len(window)} updates were not finite and changed nothing.")
        if values.get("spikes"):
            self.warn(f"{values['spikes']:.0f} of the last {len(window)} losses leapt up.")

    def evaluate(self, state: TrainState, step: int, names: list[str]) -> None:
        """Runs evaluators, writes their metrics and rows, keeps their pictures for the report."""
        for name in names:
            self.phases.enter(EVALUATION)
            evaluator = self.experiment.evals[name]
            variables = variables_of(state, evaluator.weights)
            result: Result = evaluator(self.experiment.task.predict(variables), self.plan.mesh)
            self.writers.write(step, {f"eval/{name}/{key}": value for key, value in result.items()})
            if jax.process_index() == 0:
                folder, node = self.workdir / "evaluations" / str(step), self.config["evals"].get(name, {})
                with report.or_told(f"{folder}/{name}", self.warn):
                    results.write(folder, name, result, evaluator=node, weights=str(self.workdir), step=step)
            self.artifacts.update({f"{name}/{key}": value for key, value in result.artifacts.items()})
            shown = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
            self.progress.note(f"step {step}  {name}: {shown}")
        self.write_report()

    def due_save(self, step: int) -> bool:
        """Whether a checkpoint falls on this step, or one that failed is to be tried again."""
        return self.due("checkpoint", step) or self.due("milestone", step) or self.store.overdue()

    def passes_milestone(self, step: int) -> bool:
        """Whether one falls between the last checkpoint and this step: that may not have been saved, or be doubtful."""
        every = self.experiment.clock.steps(self.experiment, "milestone")
        return bool(every) and step // every > (self.store.last or 0) // every

    def save(self, state: TrainState, step: int) -> None:
        """A checkpoint, written while training goes on."""
        with self.phases.during(CHECKPOINTS):
            self.store.wait()  # only then it is known whether the last one, maybe a milestone, is on disk
            meta = {
                "config": configs.plain(self.config),
                "stage": 0,
                "milestone": self.passes_milestone(step),
                "environment": environment.describe(),
                "data": self.batches.state(self.link.gather),
                "preprocessing": {key: configs.plain(self.config)[key] for key in ("image", "text", "tokenizer")},
            }
            if state.guard:
                meta["guard"] = guards.to_json(state.guard)
            self.store.save(step, startup.to_items(state), meta)

    def profile(self, step: int) -> None:
        """Opens and closes the trace window."""
        window = self.experiment.profile
        if window is None or jax.process_index() > 0:  # one host's trace is all that one looks at
            return
        if not self.tracing and window.start <= step < window.start + window.steps:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self.tracing = True
        elif self.tracing and step >= window.start + window.steps:
            self.end_profile()

    def end_profile(self) -> None:
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            self.progress.note(f"trace of the profiled steps: {self.workdir / 'profile'}")

    def write_report(self) -> None:
        if jax.process_index() > 0:
            return
        with report.or_told("the report", self.warn):
            report.write_report(
                self.workdir,
                title=self.workdir.name,
                config_text="\n".join(configs.lines(self.config)),
                artifacts=self.artifacts | ({"goodput": self.ledger.table()} if self.ledger else {}),
                facts=self.facts(),
                notes=[hidden(note) for note in self.notes()],
            )

    def facts(self) -> dict[str, str]:
        """What the report's header says beside the metrics."""
        kind = self.plan.mesh.devices.flat[0].device_kind
        return {"Devices": f"{self.plan.mesh.size} x {kind}", "Training": report.duration(self.chrono.training_seconds)}

    def notes(self) -> list[str]:
        """What the reader of the report should not miss: what of the data was not used."""
        damaged = self.experiment.data.damaged
        head = [f"{damaged} damaged files, or members of them, were left out"] if damaged else []
        return [*self.unreadable(), *head, *(self.experiment.data.damage if damaged else [])]

    def unreadable(self) -> list[str]:
        """The records that could not be read."""
        count = self.batches.unreadable if self.batches else 0
        named = [f"{key}: {why}" for key, why in self.batches.unreadable_first] if count else []
        head = f"{count} unreadable records were replaced by the next one"
        head += ", or used without the images that they lack" if self.experiment.data.documents else ""
        return [head, *named] if count else []

    def saved_at_last(self, state: TrainState, step: int) -> bool:
        """Whether the last step is on disk; waits for it, and tries a few times more where that fails."""
        for pause in LAST_TRIES:
            if self.store.wait() or jax.process_count() > 1:
                break
            time.sleep(pause)
            self.save(state, step)
        return self.store.wait()

    def finish(self, state: TrainState, step: int, stopped: bool) -> bool:
        """Waits for the last save and says where everything is; returns whether that is all on disk."""
        self.end_profile()
        self.phases.step = step
        with self.phases.during(CHECKPOINTS):
            saved = self.saved_at_last(state, step)
        if self.artifacts or not (self.workdir / "report.html").exists():  # else its pictures would be lost
            self.write_report()
        self.progress.note(self.ledger.line())
        if not saved:
            self.progress.note(f"error: step {step} is not saved; the same command goes on from the last that is")
            return False
        if stopped:
            first = "stopped before the first step; the same command begins anew"
            goes_on = f"stopped after step {step}, saved; the same command goes on from there"
            self.progress.note(goes_on if step else first)
            return True
        seconds = report.duration(self.chrono.training_seconds)
        self.progress.note(f"done: {step} steps, {seconds} of training in this process")
        self.progress.note(f"checkpoint  {self.workdir / 'checkpoints' / str(step)}")
        self.progress.note(f"metrics     {self.workdir / 'metrics.jsonl'}")
        self.progress.note(f"report      {self.workdir / 'report.html'}")
        return True

    def close(self) -> None:
        """Lets go of everything, also after an error."""
        self.end_profile()
        if self.batches is not None:
            self.batches.close()
        self.store.close()
        self.writers.close()
        if self.pulse is not None:
            self.pulse.stop()


def _ahead(mesh: jax.sharding.Mesh) -> int:
    """Steps that may wait on the devices: enough to keep them busy, few enough to hold few batches.

    0 on several simulated CPU devices: programs with collectives that are in flight together starve each other of
    threads, up to a deadlock.
    """
    return 0 if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu" else 2


def _files(experiment: Experiment, config: Mapping, workdir: Path) -> list[Any]:
    workdir.mkdir(parents=True, exist_ok=True)
    files: list[Any] = [report.JsonlWriter(workdir / "metrics.jsonl"), report.TensorBoardWriter(workdir / "events")]
    if experiment.wandb:
        files.append(report.WandbWriter(experiment.wandb, workdir, config=hidden_in(configs.plain(config))))
    return files
