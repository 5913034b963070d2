"""`python -m vlm_jax.main --config=NAME`: reads the arguments, says what is wrong with them, and starts the run."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_jax import workdirs
from vlm_jax.errors import UserError, closest
from vlm_jax.redact import hidden, tell, tell_uncaught
from vlm_jax.stop import Stop, Stopped, on_signals

USAGE = (
    "python -m vlm_jax.main --config=NAME|PATH|WORKDIR[:VARIANT] [--config.KEY=VALUE ...] "
    "[--bind='Target.param=VALUE' ...]"
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else."""

    def error(self, message: str):
        raise UserError(f"{message}; --help lists the arguments.")


def parser() -> Parser:
    """The flags; `--config.KEY=VALUE` are taken out before, since a recipe decides which keys there are."""
    p = Parser(prog="python -m vlm_jax.main", usage=USAGE + " [options]", allow_abbrev=False, add_help=False)
    p.add_argument(
        "--config", metavar="NAME[:VARIANT]", help="a shipped recipe, a recipe's path, or the workdir of a run"
    )
    p.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="TARGET.PARAM=VALUE",
        help="set a parameter wherever its component is bound",
    )
    p.add_argument("--workdir", metavar="DIR", help="checkpoints, metrics and report go here (default: workdirs/NAME)")
    p.add_argument("--stage", metavar="NAME", help="of a recipe in stages: this one alone (default: all, in order)")
    p.add_argument("--evaluate_only", action="store_true", help="evaluate the workdir's last good checkpoint, and stop")
    p.add_argument(
        "--dry_run", action="store_true", help="one step, every evaluator, one save, one restore; keeps nothing"
    )
    p.add_argument(
        "--plan",
        metavar="TOPOLOGY",
        help="compile for a machine that is not here, and say what it takes; --plan=help lists",
    )
    p.add_argument("--plan_full", action="store_true", help="with --plan: compile all layers, at full effort (minutes)")
    p.add_argument(
        "--explain_sharding", action="store_true", help="print where each parameter lies, here or with --plan, and stop"
    )
    p.add_argument(
        "--print_config", action="store_true", help="print the resolved config, one `key = value` a line, and stop"
    )
    p.add_argument(
        "--allow_config_change", action="store_true", help="go on in a workdir that was begun with another config"
    )
    p.add_argument("--coordinator", metavar="HOST:PORT", help="of many processes: where process 0 listens")
    p.add_argument("--num_processes", type=int, metavar="N", help="how many there are; 1 asks no environment")
    p.add_argument("--process_id", type=int, metavar="I", help="which one this is, 0 to N-1")
    p.add_argument(
        "--process_timeout", type=float, default=300, metavar="S", help="seconds to wait for all of them (default: 300)"
    )
    p.add_argument("--help", "-h", action="store_true", help="this text and the list of recipes")
    return p


def split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(other arguments, [(key, value)]) of `--config.KEY=VALUE` and `--config.KEY VALUE`."""
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        match = re.match(r"--config\.([\w.]+)(?:=(.*))?$", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            raise UserError(f"{word} needs a value: {word}=VALUE.")
        overrides.append((match[1], value))
    return rest, overrides


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The parsed flags and the overrides. Raises UserError on an unknown flag."""
    rest, overrides = split_overrides(argv)
    known = parser()
    flags, unknown = known.parse_known_args(rest)
    if unknown:
        names = [o for action in known._actions for o in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}; {closest(unknown[0].split('=')[0], names)}")
    if not flags.config and not flags.help and flags.plan != "help":
        from vlm_jax.config import recipes

        raise UserError(f"--config=NAME is missing; recipes: {', '.join(recipes())}.")
    return flags, overrides


def help_text() -> str:
    """Flags and recipes, the latter with the first line of their docstrings."""
    from vlm_jax.config import recipes

    rows = []
    for name, path in recipes().items():
        first = re.search(r'^"""(.+?)(?:\n|""")', path.read_text())
        rows.append(f"  {name:<18} {first[1] if first else ''}")
    return parser().format_help() + "\nrecipes:\n" + "\n".join(rows)


def resolved_config(
    flags: argparse.Namespace,
    overrides: list[tuple[str, str]],
    variant: str | None = None,
    say: Callable[[str], None] = lambda line: None,
):
    """The recipe with variant, `--bind` and `--config.*` applied, checked, defaults filled in."""
    from vlm_jax import config as configs
    from vlm_jax import trust
    from vlm_jax.overrides import apply_bind, override_all

    config = configs.load(flags.config if variant is None else f"{flags.config}:{variant}")
    for text in flags.bind:
        count = apply_bind(config, text)
        say(f"--bind {hidden(text)}: set on {count} component{'s' if count != 1 else ''}")
    override_all(config, overrides)
    configs.check(config)
    if where := workdir_named(flags):
        trust.check_options(config, where, [key for key, _ in overrides])
    if getattr(flags, "stage", None) is not None:  # other programs take configs, and no stage of them
        from vlm_jax import stages

        stages.of(config, flags.stage)
    return config


def workdir_named(flags: argparse.Namespace) -> str | None:
    """The workdir that is the config, None where that is a recipe."""
    from vlm_jax import config as configs

    name = configs.split_spec(flags.config)[0]
    return name if configs.names_workdir(name) else None


def one_stage(config, flags: argparse.Namespace, say: Callable[[str], None]):
    """The config of `--stage`, of the last one where none was asked for, or the config where it has no stages."""
    from vlm_jax import stages

    names = stages.names(config)
    if names and flags.stage is None:
        say(f"stages: {', '.join(names)}; this is {names[-1]}, --stage=NAME takes another")
    return stages.of(config, flags.stage or names[-1]) if names else config


def cpu_variant(flags: argparse.Namespace, say: Callable[[str], None]) -> str | None:
    """`smoke` where the recipe has that variant, none was asked for, and the only device is a CPU."""
    from vlm_jax import config as configs

    name, variant = configs.split_spec(flags.config)
    if variant or configs.names_workdir(name) or "smoke" not in configs.variants_of(configs.recipe_module(name)):
        return None
    import jax

    if jax.default_backend() != "cpu":
        return None
    say(
        f"only a CPU here: running {name}:smoke (same model, small batch, few steps, embedded data); "
        f"the full recipe is --config={name}:full"
    )
    return "smoke"


def show(text: str) -> None:
    """Prints; a reader that has seen enough (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guarded(program: Callable[[], int], interrupted: str = "interrupted") -> int:
    """The exit code of a program: an error's where it tells of one in a line (`UserError`), 130 where interrupted."""
    tell_uncaught()
    try:
        return program()
    except UserError as error:
        tell(f"error: {error}")
        return error.code
    except Stopped as stopped:
        tell(str(stopped))
        return stopped.code
    except KeyboardInterrupt:
        tell(interrupted)
        return 130


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    began = time.monotonic()
    flags, overrides = arguments(argv)
    if flags.help:
        show(help_text())
        return 0
    if flags.explain_sharding:
        from vlm_jax.explain import explain_sharding

        config = one_stage(resolved_config(flags, overrides, say=show), flags, show)
        show("\n".join(explain_sharding(config, flags.plan)))
        return 0
    if flags.plan == "help" or (flags.plan and not flags.print_config):
        return run_plan(flags, overrides)
    from vlm_jax import config as configs
    from vlm_jax import processes

    job = processes.asked_for(flags)
    said: list[str] = []
    config = resolved_config(flags, overrides, say=said.append)
    if flags.print_config and flags.stage:
        config = one_stage(config, flags, show)
    lines = configs.lines(configs.fill(config))
    if flags.print_config:
        show("\n".join([*said, *lines]))
        return 0

    mode = f"--evaluate_only={flags.evaluate_only} --dry_run={flags.dry_run}"
    job = job or processes.detect(flags.process_timeout)
    link = processes.join(job, [*lines, mode], flags.process_timeout)
    with on_signals(link.end) as stop, link.together():
        return run_config(flags, overrides, config, said, link, stop, began)


def run_config(
    flags: argparse.Namespace,
    overrides: list[tuple[str, str]],
    config,
    said: Sequence[str],
    link,
    stop: Stop,
    began: float,
) -> int:
    """Everything after the arguments are understood, as one of the processes of `link`."""
    for line in said:
        link.say(line)
    variant = cpu_variant(flags, link.say)
    if variant:
        config = resolved_config(flags, overrides, variant)
    workdir = Path(flags.workdir) if flags.workdir else workdirs.default(flags.config, variant)

    from vlm_jax import stages, trust

    where, given = workdir_named(flags), [key for key, _ in overrides]
    trusted = lambda opened: trust.without_cache(opened, where, given, link.say) if where else opened
    names = stages.names(config)
    if not names:
        return run_one(flags, config, workdir, link, stop, trusted, began)
    wanted = [flags.stage] if flags.stage else names[-1:] if flags.evaluate_only else names
    for stage in stages.each(config, workdir, alone=flags.dry_run):
        if stage.name in wanted:
            if code := stop.by_now(link):  # the stage before was told too late for its loop
                link.say(f"stopped before stage {stage.name}; the same command goes on there")
                return code
            link.say(f"stage {stage.name}: {stage.workdir}")
            code = run_one(flags, stage.config, stage.workdir, link, stop, trusted)
            if code:
                return code
    return 0


def run_one(
    flags: argparse.Namespace, config, workdir: Path, link, stop: Stop, trusted: Callable, began: float | None = None
) -> int:
    """A run of one config.

    Args:
      trusted: what may be run of an experiment.
      began: when its start-up did, in seconds of `time.monotonic`; now unless given.
    """
    began = time.monotonic() if began is None else began
    from vlm_jax import config as configs

    filled = configs.fill(config)
    workdirs.check(workdir, filled, flags.allow_config_change, link.say)

    from vlm_jax.experiment import open_experiment

    if flags.dry_run:
        with workdirs.throw_away(workdir, link) as folder:
            experiment = trusted(link.in_turn(lambda: open_experiment(config, folder / "assets")))

            from vlm_jax import train

            return train.dry_run(experiment, filled, folder / "run", link)
    if not flags.evaluate_only:
        workdirs.check_writable(workdir)
    elif not (filled["resume"] or filled["init_from"]):
        from vlm_jax.checkpoint import latest_step

        if latest_step(workdir) is None:
            raise UserError(
                f"{workdir} has no checkpoint to evaluate; train first, or give --config.init_from=WORKDIR."
            )
    experiment = trusted(link.in_turn(lambda: open_experiment(config, workdir / "assets")))

    from vlm_jax import train

    if flags.evaluate_only:
        return train.evaluate_only(experiment, filled, workdir, link)
    return train.train(experiment, filled, workdir, flags.allow_config_change, link, began, stop)


def run_plan(flags: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """`--plan`: needs neither the machine nor data; the devices that are here are left alone."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported
    from vlm_jax.plan import plan, topologies

    if flags.plan == "help":
        show(topologies.help_text())
        return 0
    topologies.parse(flags.plan)  # wrong names first
    config = one_stage(resolved_config(flags, overrides, say=show), flags, show)
    workdir = Path(flags.workdir) if flags.workdir else workdirs.default(flags.config, None)
    return plan(config, flags.plan, workdir, full=flags.plan_full, say=show)


def main(argv: list[str] | None = None) -> int:
    """Runs, and turns a user's mistake into one line and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's C++ log, before jax is imported
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
