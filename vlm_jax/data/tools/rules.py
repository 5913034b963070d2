"""Rules of `curate` that look at one record: its image, or its captions one by one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from vlm_jax.data.tools.measure import Measured
from vlm_jax.data.tools.scripts import NONE as NO_SCRIPT
from vlm_jax.data.tools.scripts import OTHER, SCRIPTS, script_of
from vlm_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a flag asks of a record.

    Attributes:
      name: the flag.
      value: what it was given.
      image: whether the record may stay, by its image; None for a rule on captions.
      caption: whether a caption passes. A record stays while one of its captions passes all rules.
    """

    name: str
    value: Any
    image: Callable[[Measured], bool] | None = None
    caption: Callable[[str], bool] | None = None


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The flags; a rule whose flag is not given does not exist."""
    parser.add_argument("--min_side", type=int, metavar="PIXELS", help="of the short side")
    parser.add_argument("--max_aspect", type=float, metavar="X", help="long side by short side, at most")
    parser.add_argument("--min_chars", type=int, metavar="N", help="characters of a caption, at least")
    parser.add_argument("--max_chars", type=int, metavar="N", help="characters of a caption, at most")
    parser.add_argument("--min_words", type=int, metavar="N", help="words of a caption, at least")
    parser.add_argument("--scripts", metavar="A,B", help=f"of captions: {', '.join(SCRIPTS)}, {OTHER}, {NO_SCRIPT}")


def rules(flags: argparse.Namespace) -> list[Rule]:
    """Those that are asked for, in the order in which they apply. Raises: UserError for a value that is none."""
    asked = []
    for name in ("min_side", "min_chars", "max_chars", "min_words"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UserError(f"--{name}={value}: wanted is at least 1.")
    if (least := flags.min_side) is not None:
        asked.append(Rule("min_side", least, image=lambda row: min(row.width, row.height) >= least))
    if (most := flags.max_aspect) is not None:
        if most < 1:
            raise UserError(f"--max_aspect={most}: long side by short side is at least 1.")
        asked.append(Rule("max_aspect", most, image=lambda row: max(row.width, row.height) <= most * _short(row)))
    if (shortest := flags.min_chars) is not None:
        asked.append(Rule("min_chars", shortest, caption=lambda text: len(text) >= shortest))
    if (longest := flags.max_chars) is not None:
        asked.append(Rule("max_chars", longest, caption=lambda text: len(text) <= longest))
    if (fewest := flags.min_words) is not None:
        asked.append(Rule("min_words", fewest, caption=lambda text: len(text.split()) >= fewest))
    if flags.scripts is not None:
        asked.append(Rule("scripts", flags.scripts, caption=_in_scripts(flags.scripts)))
    return asked


def _short(row: Measured) -> int:
    return min(row.width, row.height)


def _in_scripts(names: str) -> Callable[[str], bool]:
    wanted, known = {name.strip().lower() for name in names.split(",")}, (*SCRIPTS, OTHER, NO_SCRIPT)
    for name in sorted(wanted):
        if name not in known:
            raise UserError(f"--scripts={names}: no script {name!r}; {closest(name, known)}")
    return lambda text: script_of(text) in wanted
