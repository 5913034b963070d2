"""Back to the last checkpoint, and on with the data after those of a spike; noted in `WORKDIR/rewinds.jsonl`.

A note is {"step", "to", "data", "next_index"}: the loss leapt up to `step`; the run went back to checkpoint `to`, whose
data would have gone on at row `data`, and went on at row `next_index`. A run that is started again from that checkpoint
goes on there too, so that it does not meet the spike once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vlm_jax import dump, report, startup
from vlm_jax.checkpoint import latest_step, read_meta
from vlm_jax.state import TrainState

if TYPE_CHECKING:
    from vlm_jax.run import Run

Note = dict[str, int]


def notes(workdir: Path) -> list[Note]:
    """All of them, in order; a line that a killed run has left half written is none."""
    try:
        lines = (workdir / "rewinds.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def of_checkpoint(known: list[Note], to: int, data: Mapping[str, Any]) -> list[Note]:
    """Those that went back to this checkpoint, as its data stood."""
    return [note for note in known if (note["to"], note["data"]) == (to, data["next_index"])]


def all_of(run: Run) -> list[Note]:
    """The workdir's, and those of this run that a full disk has not taken."""
    known = notes(run.workdir)
    return [*known, *(note for note in run.rewinds if note not in known)]


def write(run: Run, note: Note) -> None:
    """Keeps a note, on disk if that takes it."""
    run.rewinds.append(note)
    if run.link.index == 0:
        with report.or_told("rewinds.jsonl", run.warn):
            lines = "".join(f"{json.dumps(one)}\n" for one in all_of(run))
            report.replace_file(run.workdir / "rewinds.jsonl", lines.encode())


def moved(data: Mapping[str, Any], known: list[Note]) -> dict[str, Any]:
    """The data state of a checkpoint, moved on by the last note about it."""
    return {**data, "next_index": known[-1]["next_index"]} if known else dict(data)


def rewind(run: Run, state: TrainState, step: int, metrics: Mapping[str, jax.Array]) -> TrainState | None:
    """The state of the last checkpoint, with the data after the spike; None where there is no checkpoint.

    Args:
      state: deleted, so that there is room for the other.

    Raises: UserError where that was done too often.
    """
    spikes, data = run.experiment.guards.spikes, run.batches.state(run.link.gather)
    run.store.wait()
    last = run.link.gather(_last(run.workdir))[0]
    run.verdicts.forget()
    if last is None:
        run.warn(f"step {step}: the loss leaps, and there is no checkpoint to go back to; going on")
        return None
    to, saved = last
    known = of_checkpoint(run.link.gather(all_of(run))[0], to, saved)
    if len(known) >= spikes.rewinds:
        dump.give_up(run, state, step, metrics, f"the loss leaps again after {len(known)} rewinds to step {to}")
    after = data["next_index"] + spikes.leave_out * run.experiment.batch_size
    note = {"step": step, "to": to, "data": saved["next_index"], "next_index": after}
    write(run, note)  # first, so that a run that dies of what follows does not meet the spike again
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    to, items, meta = run.store.restore_latest(startup.to_items(run.plan.placed()))
    if to != note["to"]:  # that one is damaged
        note = {**note, "to": to, "data": meta["data"]["next_index"]}
        write(run, note)
    first = run.experiment.data.first_example
    left_out = first(after) - first(note["data"])
    run.warn(f"step {step}: the loss leaps; back to step {to}, leaving out the {left_out} examples since then")
    run.replace_batches(moved(meta["data"], [note]))
    run.writers.truncate_after(to)
    run.chrono.restart(to)
    return startup.from_items(run.plan, to, items, meta.get("guard"))


def _last(workdir: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, state of the data) of the newest checkpoint whose `meta` can be read."""
    step = latest_step(workdir)
    return None if step is None else (step, read_meta(workdir / "checkpoints" / str(step))["data"])
