"""What the config of a workdir may not decide, since it may come from anyone: where native code is loaded from.

The command line may: `--config.compilation_cache=DIR`, `--config.compiler_options.NAME=VALUE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlm_jax.errors import UserError
from vlm_jax.schema import is_mapping

if TYPE_CHECKING:
    from vlm_jax.experiment import Experiment

CACHE, OPTIONS = "compilation_cache", "compiler_options"


def check_options(config: Mapping[str, Any], where: str, given: Iterable[str]) -> None:
    """Raises UserError for flags of the compiler that are no numbers, and so may be paths, which were not `given`.

    Args:
      where: the workdir. given: keys that the command line sets.
    """
    stages = config.get("stages") or {}
    for prefix, changed in [("", config), *((f"stages.{name}.", stages[name]) for name in stages)]:
        options = changed.get(OPTIONS) if is_mapping(changed) else None
        for name in options if is_mapping(options) else ():
            key, value = f"{prefix}{OPTIONS}.{name}", options[name]
            if not isinstance(value, (bool, int, float)) and key not in given:
                raise UserError(
                    f"{where} sets config.{key}={value!r}, and of a file flags of the compiler must be numbers, since "
                    f"it loads code from paths; if it is yours, give --config.{key}={value}."
                )


def without_cache(experiment: Experiment, where: str, given: Iterable[str], say: Callable[[str], None]) -> Experiment:
    """The experiment of a workdir's config, without a cache of programs that is neither the usual one nor `given`."""
    folder = experiment.compilation_cache
    if folder in (None, type(experiment).compilation_cache) or any(key.endswith(CACHE) for key in given):
        return experiment
    say(
        f"warning: {where} sets config.{CACHE}={folder}, and programs are not loaded from where a file says; "
        f"if it is yours, give --config.{CACHE}={folder}"
    )
    return dataclasses.replace(experiment, compilation_cache=None)
