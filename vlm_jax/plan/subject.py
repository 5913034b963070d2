"""What is planned: a config's experiment without its data and tokenizer, and variations of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_jax import config as configs
from vlm_jax.data.text import Text
from vlm_jax.data.tokenizers import trained_size
from vlm_jax.errors import UserError
from vlm_jax.experiment import Experiment, fused
from vlm_jax.models.tower import Stack


@dataclasses.dataclass(frozen=True)
class NoData:
    """Stands for the data; `length` is theirs, 0 where it is not known."""

    length: int = 0
    name: str = "none"
    fingerprint: str = ""
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.length or 10**6

    def captions(self, limit: int) -> list[str]:
        return []


@dataclasses.dataclass(frozen=True)
class Untokenized(Text):
    """Text whose tokenizer is not here; `size` is its vocabulary, 0 where it is not known."""

    size: int = 0

    @property
    def vocab_size(self) -> int:
        return self.size


@dataclasses.dataclass(frozen=True)
class Change:
    """A variation of an experiment; None leaves a thing as it is.

    Attributes:
      depths: (depth, other depth): towers of the one get the other.
      remat: of every tower. microbatches: of the step. fsdp: ways that parameters are split.
    """

    depths: tuple[tuple[int, int], ...] = ()
    remat: str | None = None
    microbatches: int | None = None
    fsdp: int | None = None

    def overrides(self, experiment: Experiment) -> list[str]:
        """The command-line arguments that make this change, beside that of depths."""
        out = []
        if self.remat is not None and self.remat != remat_of(experiment):
            names = sorted({type(tower).__name__ for tower in towers(experiment.task)})
            out += [f"--bind={name}.remat={self.remat}" for name in names]
        if self.microbatches is not None and self.microbatches != experiment.microbatches:
            out.append(f"--config.microbatches={self.microbatches}")
        if self.fsdp is not None and self.fsdp != experiment.mesh.fsdp:
            out.append(f"--config.mesh.fsdp={self.fsdp}")
        return out


def experiment_of(config: Mapping) -> Experiment:
    """The experiment of a config, without evaluators, data and tokenizer.

    The size of the vocabulary is the recipe's; where the recipe leaves it to the tokenizer, that must be here.

    Raises:
      UserError: what can be wrong in a config, or the vocabulary is not known.
    """
    configs.check(config)
    config = copy.deepcopy(config)
    config.evals = {}
    spec = config.get("tokenizer", "bytes")
    config.tokenizer = "bytes"
    config.data.source = configs.bind("plan.subject.NoData", length=_epoch(config))
    late: dict[str, Any] = {"image": configs.build(config.image), "class_names": ()}
    if config.get("text") is not None:
        size = _vocabulary(spec)
        config.text = configs.bind("plan.subject.Untokenized", **dict(configs.items(config.text)), size=size or 0)
        late |= {"text": configs.build(config.text, tokenizer="bytes"), "tokenizer": "bytes", "eos_id": 1, "pad_id": 0}
        late |= {"bos_id": 3, "end_id": 1}
        late |= {"vocab_size": size} if size else {}
    for name in ("packing", "conversations"):
        late[name] = None if config.get(name) is None else configs.build(config[name])
    try:
        return configs.build(config, **late, **fused(config, late))
    except UserError as error:
        if "'vocab_size' is known only at run time" in str(error):
            raise UserError(
                "the plan needs the size of the vocabulary: give --config.tokenizer=PATH, train:N or bytes."
            ) from None
        raise


def _vocabulary(spec: str | None) -> int | None:
    """Of a tokenizer that is known without its file, or whose file is here."""
    if spec and spec.startswith("train:"):
        return trained_size(spec)
    if spec and (spec == "bytes" or Path(spec).is_file()):
        return Text(tokenizer=spec).model.vocab_size
    return None


def _epoch(config: Mapping) -> int:
    """Examples of an epoch, where the run is counted in epochs and the data are here; else 0."""
    if config.get("total_epochs") is None:
        return 0
    try:
        return len(configs.build(config.data.source, image=configs.build(config.image)))
    except UserError:
        return 0


def knows_its_length(experiment: Experiment) -> bool:
    """Whether the number of steps can be told: it is not counted in epochs of data that are not here."""
    return experiment.total_epochs is None or experiment.data.source.length > 0


def apply(experiment: Experiment, change: Change) -> Experiment:
    """The experiment with a change. Raises UserError where it does not fit."""
    task = experiment.task
    for before, after in change.depths:
        task = _map_towers(task, lambda t, b=before, a=after: _with_depth(t, b, a))
    if change.remat is not None:
        task = _map_towers(task, lambda t: dataclasses.replace(t, remat=change.remat))
    mesh = experiment.mesh
    if change.fsdp is not None:
        mesh = dataclasses.replace(mesh, data=-1, fsdp=change.fsdp)
    microbatches = change.microbatches or experiment.microbatches
    return dataclasses.replace(experiment, task=task, mesh=mesh, microbatches=microbatches)


def _with_depth(tower: Stack, before: int, after: int) -> Stack:
    return dataclasses.replace(tower, depth=after) if tower.geometry.depth == before and not tower.scan else tower


def towers(component: Any) -> Iterator[Stack]:
    """All towers and decoders in a component, however deep."""
    if isinstance(component, Stack):
        yield component
    elif dataclasses.is_dataclass(component):
        for field in dataclasses.fields(component):
            yield from towers(getattr(component, field.name))


def _map_towers(component: Any, change) -> Any:
    if isinstance(component, Stack):
        return change(component)
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        return component
    fields = {f.name: getattr(component, f.name) for f in dataclasses.fields(component) if f.init}
    changed = {name: _map_towers(value, change) for name, value in fields.items()}
    new = {name: value for name, value in changed.items() if value is not fields[name]}
    return dataclasses.replace(component, **new) if new else component


def unrolled_depths(experiment: Experiment) -> list[int]:
    """Depths of towers whose layers are unrolled, deepest last; they decide how long a compile takes."""
    return sorted({t.geometry.depth for t in towers(experiment.task) if not t.scan})


def remat_of(experiment: Experiment) -> str:
    """The policies of the towers, one word where they agree."""
    return "/".join(sorted({t.remat for t in towers(experiment.task)}))
