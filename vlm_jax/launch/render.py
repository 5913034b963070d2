"""Templates of `launch/` filled in, and values quoted for whoever reads them: bash, YAML, Kubernetes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a target makes of a run: files of its folder, commands, and what to know afterwards."""

    files: dict[str, str]
    commands: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    tools: tuple[str, ...] = ()


def template(name: str) -> str:
    """The text of a template; in a checkout they lie in `launch/` beside the package, installed inside it."""
    package = Path(__file__).parents[1]
    folder = next(f for f in (package / "launch_templates", package.parent / "launch") if f.is_dir())
    return (folder / name).read_text()


def fill(file: str, /, **values: str | int) -> str:
    """The template with each `{{ key }}` replaced.

    A key alone on its line stands for any number of lines, indented as it is; for none, the line goes.
    """
    unused = set(values)

    def replaced(match: re.Match) -> str:
        key = match["lines"] or match["key"]
        unused.discard(key)
        value = str(values[key])
        if match["key"]:
            return value
        return "".join(f"{match['indent']}{line}".rstrip() + "\n" for line in value.split("\n") if value)

    one_pass = r"^(?P<indent>[ \t]*)\{\{ (?P<lines>\w+) \}\}\n|\{\{ (?P<key>\w+) \}\}"
    text = re.sub(one_pass, replaced, template(file), flags=re.MULTILINE)
    if unused:
        raise KeyError(f"{file} has no {sorted(unused)}")
    return text


def shell_word(value: str) -> str:
    """One word of bash on one line, whatever is in it."""
    if value.isprintable():
        return shlex.quote(value)
    bytes_of = lambda c: "".join(f"\\x{byte:02x}" for byte in c.encode(errors="surrogateescape"))
    return "$'" + "".join(c if c.isprintable() and c not in "\\'" else bytes_of(c) for c in value) + "'"


def shell_words(values: Iterable[str]) -> str:
    """Words of a bash array, one a line."""
    return "\n".join(map(shell_word, values))


def yaml_string(value: str) -> str:
    """A double-quoted YAML string; what is not printable is escaped, since YAML readers refuse it."""
    return re.sub(r"[^\x20-\x7e]", lambda match: f"\\U{ord(match[0]):08x}", json.dumps(value, ensure_ascii=False))


def kubernetes_arguments(values: Sequence[str]) -> str:
    """A YAML list of container arguments, each `$` doubled: `$(NAME)` is replaced in them, and `$$` becomes `$`."""
    return "\n".join(f"- {yaml_string(value.replace('$', '$$'))}" for value in values)
