"""The command line: a target, its flags, and the arguments of the run; shows what it makes of them and starts it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys
import typing

from vlm_jax.errors import UserError, closest
from vlm_jax.launch import job as jobs
from vlm_jax.launch.render import Launch
from vlm_jax.launch.targets import TARGETS
from vlm_jax.main import USAGE, Parser, guarded, show

INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "gcloud components install kubectl, or https://kubernetes.io/docs/tasks/tools",
    "sky": "pip install 'skypilot[gcp]' (or [aws], [azure], ...), then sky check",
    "sbatch": "it is there on a login node of a SLURM cluster; run this there",
}


def parser(target: str) -> Parser:
    """The flags of a target; what it does not know is for `vlm_jax.main`."""
    usage = f"python -m vlm_jax.launch {target} [options] " + USAGE.removeprefix("python -m vlm_jax.main ")
    p = Parser(prog=f"python -m vlm_jax.launch {target}", usage=usage, allow_abbrev=False, add_help=False)
    p.description = TARGETS[target].__doc__
    p.add_argument("--topology", help="hardware, as --plan names it: v5e:4x4, 2*v6e:16x16, 4*h100:8, cpu:2")
    p.add_argument("--name", help="name of the run where it runs (default: the config's)")
    p.add_argument("--dry_run", action="store_true", help="print every file and command, and start nothing")
    p.add_argument("--help", "-h", action="store_true", help="this text")
    types = typing.get_type_hints(TARGETS[target])
    for field in dataclasses.fields(TARGETS[target]):
        options = {"help": field.metadata["help"], "default": field.default}
        if types[field.name] is bool:
            options["action"] = "store_true"
        elif types[field.name] is int:
            options["type"] = int
        elif types[field.name] == tuple[str, ...]:
            options |= {"action": "append", "default": None}
        p.add_argument(f"--{field.name}", **options)
    return p


def help_text() -> str:
    rows = [f"  {name:<10} {target.__doc__}" for name, target in TARGETS.items()]
    usage = "usage: python -m vlm_jax.launch TARGET --topology=NAME --config=NAME ... [--dry_run]"
    return "\n".join([usage, "", "targets:", *rows, "", "python -m vlm_jax.launch TARGET --help lists its flags."])


def parse(argv: list[str]) -> tuple[argparse.Namespace, object, jobs.Job] | str:
    """(flags, target, job), or the help that was asked for.

    Raises:
      UserError: anything that is wrong with the arguments, those of `vlm_jax.main` included.
    """
    if not argv or argv[0] in ("--help", "-h"):
        return help_text()
    name, words = argv[0], argv[1:]
    if name not in TARGETS:
        raise UserError(f"no target {name!r}; {closest(name, TARGETS)}")
    known = parser(name)
    flags, rest = known.parse_known_args(_joined(words))
    if flags.help:
        return known.format_help()
    fields = dataclasses.fields(TARGETS[name])
    given = {field.name: getattr(flags, field.name) for field in fields}
    missing = [field.name for field in fields if given[field.name] is dataclasses.MISSING]
    missing = [*([] if flags.topology else ["topology"]), *missing]
    if missing:
        raise UserError(f"{name} needs {', '.join(f'--{flag}' for flag in missing)}.")
    given = {key: tuple(value or ()) if key == "sbatch" else value for key, value in given.items()}
    own = [option for action in known._actions for option in action.option_strings]
    return flags, TARGETS[name](**given), jobs.make(flags.name, flags.topology, rest, own)


def _joined(words: list[str]) -> list[str]:
    """`--config.KEY VALUE` and `--bind VALUE` as one word each, so that no value is taken for a flag of the launch."""
    joined, iterator = [], iter(words)
    for word in iterator:
        if (word.startswith("--config.") or word == "--bind") and "=" not in word:
            value = next(iterator, None)
            word = word if value is None else f"{word}={value}"
        joined.append(word)
    return joined


def shown(launch: Launch, job: jobs.Job) -> str:
    """Every file under its path, then the commands."""
    parts = [f"==> {job.folder / name} <==\n{text}" for name, text in launch.files.items()]
    return "\n".join([*parts, *(f"$ {shlex.join(command)}" for command in launch.commands), *launch.notes])


def start(launch: Launch, job: jobs.Job) -> int:
    """Writes the files and runs the commands; stops at the first that fails, with its exit code."""
    for tool in launch.tools:
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed: {INSTALL[tool]}.")
    for name, text in launch.files.items():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    show(shown(launch, job))
    for command in launch.commands:
        code = subprocess.run(command).returncode
        if code:
            print(f"exit code {code}: {shlex.join(command)}", file=sys.stderr)
            return code
    return 0


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    parsed = parse(argv)
    if isinstance(parsed, str):
        show(parsed)
        return 0
    flags, target, job = parsed
    launch = target.render(job)
    if flags.dry_run:
        show(shown(launch, job))
        return 0
    return start(launch, job)


def main(argv: list[str] | None = None) -> int:
    """Runs, and turns a user's mistake into one line and exit code 2."""
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv))
