"""The command line of `python -m vlm_jax.evaluate`: `run` evaluates weights, `compare` sets results side by side."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError, closest
from vlm_jax.main import Parser, guarded, resolved_config, show, split_overrides

SUITE = Path(__file__).with_name("suite.py")


@dataclasses.dataclass(frozen=True)
class Evaluators:
    """The root of a recipe that trains nothing: evaluators by name, for the weights that `run` is given."""

    evals: Mapping[str, Any]


class Functions(dict):
    """What a model computes, by name. Raises UserError where an evaluator asks for what it does not."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"the model gives no {name!r}, which this evaluator needs; {closest(name, self)}")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m vlm_jax.evaluate", description="Evaluations.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    run = commands.add_parser("run", help="evaluate a workdir, or another library's weights", allow_abbrev=False)
    run.add_argument(
        "path", metavar="PATH", help="what vlm_jax.load takes: a workdir, an export, a folder, hf:ORG/NAME"
    )
    run.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="whose evaluators: a recipe, a file, or a workdir (default: the workdir's own, else drawn shapes)",
    )
    run.add_argument("--suite", action="store_true", help="every kind of evaluator, on drawn shapes")
    run.add_argument("--bind", action="append", default=[], metavar="TARGET.PARAM=VALUE", help="as in vlm_jax.main")
    run.add_argument("--only", metavar="A,B", help="these evaluators alone")
    run.add_argument("--weights", choices=("params", "ema"), default="params", help="of a workdir (default: params)")
    run.add_argument(
        "--card", metavar="NAME|FILE", help="the protocol to hold the weights against (default: that of their family)"
    )
    run.add_argument("--output", metavar="DIR", help="results go here (default: PATH/evaluations/STEP of a workdir)")
    pair = commands.add_parser("compare", help="results side by side, with confidence intervals", allow_abbrev=False)
    pair.add_argument("paths", nargs="+", metavar="PATH", help="workdirs, folders of results, or results.json files")
    pair.add_argument("--html", metavar="FILE", help="also write a page with the failure cases as pictures")
    pair.add_argument("--samples", type=int, default=2000, metavar="N", help="draws of the bootstrap (default: 2000)")
    pair.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the intervals (default: 0.95)")
    pair.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    return top


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    rest, overrides = split_overrides(argv)
    known = parser()
    flags, unknown = known.parse_known_args(rest)
    if unknown:
        (commands,) = [action for action in known._actions if action.dest == "command"]
        names = [option for action in commands.choices[flags.command]._actions for option in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}; {closest(unknown[0].split('=')[0], names)}")
    if flags.command == "compare":
        if overrides:
            raise UserError(f"--config.{overrides[0][0]}: compare has no config.")
        return compare_results(flags)
    return evaluate(flags, overrides)


def evaluate(flags: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """`run`: evaluators of a config on the weights of a path."""
    from vlm_jax import config as configs
    from vlm_jax.interop import ours

    is_workdir = ours.is_config(Path(flags.path) / "config.json")  # other libraries' folders have one too
    if flags.suite and flags.config:
        raise UserError(f"--suite and --config={flags.config}: give one of them.")
    flags.config = flags.config or (flags.path if is_workdir and not flags.suite else str(SUITE))
    config = resolved_config(flags, overrides, say=show)
    evals = config.get("evals") or {}
    names = list(evals)
    if flags.only is not None:
        names = [name.strip() for name in flags.only.split(",")]
        for name in names:
            if name not in evals:
                raise UserError(f"--only={flags.only}: no evaluator {name!r}; {closest(name, list(evals))}")
    if not names:
        raise UserError(f"--config={flags.config} has no evaluators.")

    import vlm_jax
    from vlm_jax.evaluate import compare, results

    model = vlm_jax.load(flags.path, flags.weights)
    output = Path(flags.output) if flags.output else default_output(flags.path, model.step)
    card, differs = model.protocol(flags.card)
    if card is not None:
        show(f"protocol  {card.name}")
    for line in differs:
        show(f"warning: {line}")
    protocol = {} if card is None else {"card": card.name, "differs": differs}
    late = {"image": model.image} | ({} if model.text is None else {"text": model.text})
    late |= {name: getattr(model, name) for name in ("conversations", "fusion") if hasattr(model, name)}
    filled = configs.fill(config)["evals"]
    lacking = [name for name in names if model.text is None and _reads_text(evals[name])]
    for name in lacking:
        show(f"{name}: left out, the model reads no text")
    built = {name: configs.build(evals[name], **late) for name in names if name not in lacking}
    about = {"weights": f"{flags.path} ({flags.weights})", "step": model.step, **protocol}
    for name, evaluator in built.items():
        start = time.perf_counter()
        result = evaluator(Functions(model.predict), model.mesh)
        results.write(output, name, result, evaluator=filled[name], **about)
        show(f"{name}: {time.perf_counter() - start:.1f} s")
    stored = results.read(output / results.FILE)
    lines = compare.compare([{name: stored[name] for name in built}])
    show("\n".join(compare.table([flags.path], lines)))
    show(f"results  {output / results.FILE}")
    return 0


def default_output(path: str, step: int | None) -> Path:
    """Of a workdir, where its run writes; else a folder named after the weights."""
    return (
        Path("evaluations") / Path(path.replace(":", "/")).name
        if step is None
        else Path(path, "evaluations", f"{step}")
    )


def _reads_text(node: Any) -> bool:
    from vlm_jax import config as configs

    if configs.is_late(node):
        return node[configs.LATE] == "text"
    return configs.schema.is_mapping(node) and any(_reads_text(node[key]) for key in node)


def compare_results(flags: argparse.Namespace) -> int:
    """`compare`: the table, and the page."""
    from vlm_jax.evaluate import compare, failures, results
    from vlm_jax.report import Table, write_page

    if flags.samples < 1 or not 0 < flags.confidence < 1:
        raise UserError(f"--samples={flags.samples} --confidence={flags.confidence}: wanted are N >= 1 and 0 < P < 1.")
    models = [results.read(path) for path in flags.paths]
    lines = compare.compare(models, samples=flags.samples, confidence=flags.confidence, seed=flags.seed)
    show("\n".join(compare.table(flags.paths, lines)))
    differs = [
        f"{path}: differs from {held['card']}: {line}"
        for path, model in zip(flags.paths, models)
        for held in {str(e.protocol): e.protocol for e in model.values()}.values()
        for line in held["differs"]
    ]
    for line in differs:
        show(f"warning: {line}")
    if flags.html:
        pictures, notes = failures.galleries(flags.paths, models)
        rows = [(f"{line.evaluator}/{line.metric}", *compare.cells(line)) for line in lines]
        share = f"{100 * flags.confidence:g}%"
        notes = [
            f"In brackets: {share} intervals, by resampling images. After them: the difference to the first.",
            *differs,
            *notes,
        ]
        artifacts = {"metrics": Table("metrics", ("metric", *flags.paths), rows)} | pictures
        write_page(Path(flags.html), title=" against ".join(flags.paths), artifacts=artifacts, notes=notes)
        show(f"page  {flags.html}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs, and turns a user's mistake into one line and exit code 2."""
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv))
