"""The command line of `python -m vlm_jax.checkpoint`: looks at checkpoints, verifies, compares and deletes them."""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_jax.checkpoint import folder as disk
from vlm_jax.checkpoint.difference import difference
from vlm_jax.checkpoint.pruning import prune
from vlm_jax.checkpoint.survey import details, overview, verified
from vlm_jax.errors import UserError
from vlm_jax.main import Parser, guarded, show

EPILOG = (
    "PATH is a workdir, or the folder of one step (WORKDIR/checkpoints/STEP). Exit codes: 0; 1 where something is "
    "damaged (verify, prune) or arrays differ (diff); 2 for a mistake in the arguments."
)


def parser() -> Parser:
    top = Parser(prog="python -m vlm_jax.checkpoint", epilog=EPILOG, allow_abbrev=False)
    tools = top.add_subparsers(dest="tool", metavar="TOOL", required=True, parser_class=Parser)

    def tool(name: str, what: str) -> Parser:
        added = tools.add_parser(name, help=what, description=what, epilog=EPILOG, allow_abbrev=False)
        added.add_argument("path", metavar="PATH", type=Path)
        return added

    tool("list", "the steps of a workdir, and what made them; of one step, its whole environment")
    tool("verify", "read every array, and hold it against its fingerprint")
    compared = tool("diff", "what differs between two checkpoints; of one workdir, between its last two")
    compared.add_argument("other", metavar="PATH", nargs="?", type=Path, help="of a workdir, its last step")
    compared.add_argument("--values", action="store_true", help="read the arrays that differ, and say by how much")
    pruned = tool("prune", "delete all steps but milestones and the last good ones, which are verified first")
    pruned.add_argument("--keep", type=int, metavar="N", required=True, help="how many of the last good steps stay")
    pruned.add_argument("--damaged", action="store_true", help="delete damaged steps too, also those set aside")
    pruned.add_argument("--dry_run", action="store_true", help="say what would go, and delete nothing")
    return top


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    flags = parser().parse_args(argv)
    import jax

    jax.config.update("jax_platforms", "cpu")  # accelerators may belong to the run that is looked at
    if flags.tool == "list":
        show("\n".join(details(flags.path) if disk.is_step(flags.path) else overview(flags.path)))
        return 0
    if flags.tool == "verify":
        good = True
        for line, whole in verified(disk.chosen(flags.path)):
            show(line)
            good &= whole
        return 0 if good else 1
    if flags.tool == "diff":
        lines, same = difference(*_two(flags.path, flags.other), flags.values)
        show("\n".join(lines))
        return 0 if same else 1
    if flags.keep < 1:
        raise UserError(f"--keep={flags.keep} must be at least 1.")
    return prune(flags.path, flags.keep, damaged=flags.damaged, dry_run=flags.dry_run, say=show)


def _two(path: Path, other: Path | None) -> tuple[Path, Path]:
    """The older or first-named step's folder, and the other."""
    if other is not None:
        return disk.chosen(path)[0], disk.chosen(other)[0]
    steps = disk.chosen(path)
    if len(steps) < 2:
        raise UserError(f"{path} is one checkpoint; name another to compare it with.")
    return steps[1], steps[0]


def main(argv: list[str] | None = None) -> int:
    """Runs, and turns a user's mistake into one line and exit code 2."""
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv))
