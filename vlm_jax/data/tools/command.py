"""The command line of `python -m vlm_jax.data`: reads the arguments, opens the source, starts the tool."""

from __future__ import annotations

import argparse
import importlib
import re
import sys

from vlm_jax.errors import UserError, closest
from vlm_jax.main import Parser, guarded, show

PROGRAM = "python -m vlm_jax.data"
# Tool -> what it does; its module, with `add_arguments(parser)`, `check(flags)` and `run(source, flags) -> lines`.
TOOLS = {
    "inspect": ("statistics, a contact sheet, and the records that are unreadable", "inspection"),
    "curate": ("choose records by rules, and tell what each removed", "curation"),
    "score": ("how well image and caption fit, by the model of a workdir", "scoring"),
    "index": ("build the indexes of a source, so that it opens at once", "indexing"),
    "convert": ("write a source as tar, array_record, parquet or folder", "conversion"),
    "bench": ("images per second and core, waits and memory, for workers and threads", "bench"),
    "tokenize": ("write the codes that an autoencoder has for images, with their captions", "tokenize"),
    "tokenizer": ("train a sentencepiece model on a source's captions", "tokenizer"),
}
ANY_RECORDS = ("index", "tokenizer")  # tools that take documents too
EPILOG = (
    "SOURCE is a path or URL (*.tar, *.parquet, *.array_record, *.jsonl, *.csv, a folder of them or of images), "
    "tfds:NAME/SPLIT, shapes, or the dotted name of a component; --source.FIELD=VALUE sets its options."
)


def parser() -> argparse.ArgumentParser:
    """All tools and their flags; `--source.FIELD=VALUE` are taken out before."""
    top = Parser(prog=PROGRAM, description="Tools for data.", epilog=EPILOG, allow_abbrev=False)
    tools = top.add_subparsers(dest="tool", metavar="TOOL", required=True, parser_class=Parser)
    for name, (what, module) in TOOLS.items():
        tool = tools.add_parser(name, help=what, description=what, epilog=EPILOG, allow_abbrev=False)
        tool.add_argument("path", nargs="?", metavar="SOURCE", help="the data; see below")
        tool.add_argument("--config", metavar="NAME[:VARIANT]", help="take the source of a recipe, by name or path")
        tool.add_argument("--part", metavar="NAME", help="of a mixture, the part to take")
        importlib.import_module(f"vlm_jax.data.tools.{module}").add_arguments(tool)
    return top


def split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(other arguments, [(field, value)]) of `--source.FIELD=VALUE`. Raises UserError."""
    rest, overrides = [], []
    for word in argv:
        match = re.match(r"--source\.([\w.]+)(=?)(.*)$", word, re.DOTALL)
        if match and not match[2]:
            raise UserError(f"{word} needs a value: {word}=VALUE.")
        if match:
            overrides.append((match[1], match[3]))
        else:
            rest.append(word)
    return rest, overrides


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The parsed flags and the overrides of the source. Raises UserError."""
    rest, overrides = split_overrides(argv)
    known = parser()
    if rest and not rest[0].startswith("-") and rest[0] not in TOOLS:
        raise UserError(f"no tool {rest[0]!r}; {closest(rest[0], TOOLS)}")
    flags, unknown = known.parse_known_args(rest)
    if unknown:
        names = [word for word in known.format_help().split() if word.startswith("--")]
        (tools,) = [action for action in known._actions if action.dest == "tool"]
        names += [option for action in tools.choices[flags.tool]._actions for option in action.option_strings]
        raise UserError(f"unknown argument {unknown[0]!r}; {closest(unknown[0].split('=')[0], names)}")
    return flags, overrides


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code."""
    flags, overrides = arguments(argv)
    from vlm_jax.data.tools.naming import open_source, require_images

    tool = importlib.import_module(f"vlm_jax.data.tools.{TOOLS[flags.tool][1]}")
    tool.check(flags)
    source = open_source(flags.path, overrides, flags.config, flags.part)
    if flags.tool not in ANY_RECORDS:
        require_images(source)
    for line in tool.run(source, flags):
        show(line)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs a tool, and turns a user's mistake into one line and exit code 2."""
    stopped = "interrupted; the same command goes on where it stopped"
    return guarded(lambda: run(sys.argv[1:] if argv is None else argv), stopped)
