"""Recipes in stages: each is a run of its own, in a folder of the workdir, that starts from the one before it.

`config.stages.NAME` has what the stage changes of the config. A config keeps no order, so that stages are run in the
order of their names: `a_projector`, `b_tuning`. What is done is not done again; one that was interrupted resumes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.errors import UserError, closest


class Stage(NamedTuple):
    """A stage as a run: the recipe's config with the stage's changes, and where it runs."""

    name: str
    config: ConfigDict
    workdir: Path


def names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages of a config, in the order of their names; () where it is one run."""
    return tuple(sorted(config.get("stages") or {}))


def of(config: ConfigDict, name: str) -> ConfigDict:
    """The config of one stage: the recipe with what `config.stages.NAME` changes, a tree like the config's own.

    Raises:
      UserError: there is no such stage, or it changes what no component has.
    """
    known = names(config)
    if name not in known:
        raise UserError(f"there is no stage {name!r}: " + (closest(name, known) if known else "the recipe has none."))
    own = copy.deepcopy(config)
    changes = own.stages[name]
    own.stages = {}
    _change(own, changes)
    configs.check(own, f"config (stage {name})")
    return own


def _change(node: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Puts values in their places; a component that is bound anew takes the place of the other one."""
    for key, value in changes.items():
        inside = isinstance(value, ConfigDict) and not configs.is_node(value) and not configs.is_late(value)
        if inside and isinstance(node.get(key), ConfigDict):
            _change(node[key], value)
        else:
            with node.ignore_type(), node.unlocked():
                node[key] = value


def each(config: ConfigDict, workdir: Path, *, alone: bool = False) -> Iterator[Stage]:
    """The stages in order, each from the parameters and with the tokenizer of the one before it.

    To be asked for the next when the one before it has run. `alone`: each as if it were the first, to try it.
    """
    before: Path | None = None
    for name in names(config):
        own = of(config, name)
        if before is not None and not alone:
            with own.ignore_type(), own.unlocked():
                own.init_from = str(before)
                own.tokenizer = _tokenizer(before) or own.get("tokenizer", "bytes")
        before = workdir / name
        yield Stage(name, own, before)


def _tokenizer(workdir: Path) -> str | None:
    """The file that a run copied its tokenizer to, or trained it into."""
    record = workdir / "assets" / "tokenizer.json"
    return str(record.parent / json.loads(record.read_text())["file"]) if record.is_file() else None
