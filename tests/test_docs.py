"""Every page is true: its snippets and commands run, its links, paths and names exist.

Blocks of a page run in order, in one namespace and one temporary folder. What a page says in a comment before a block:

    <!-- runs -->               the command is run for real, and not only through `--print_config`
    <!-- runs: FLAGS -->        the same with flags that make it short
    <!-- file: NAME -->         the block is the content of NAME
    <!-- output -->             the lines occur, in this order, in what the block before printed
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from vlm_jax import config as configs
from vlm_jax.launch.command import main as launch
from vlm_jax.main import main

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# tests/losses/test_docs.py runs that page
RUNNING = [page for page in PAGES if page.name != "losses.md"]
SETTING_UP = ("pip", "venv", "git", "cd", ".", "ruff", "pytest")
ELSEWHERE = ("docker", "gcloud", "kubectl", "scancel", "sky")  # programs of clouds and clusters
FOLDERS = r"(?:vlm_jax|configs|docs|tests|benchmarks|launch|\.ci)"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the comment before it, and the line it begins at."""

    language: str
    text: str
    note: str
    line: int


def blocks(page: pathlib.Path) -> list[Block]:
    text = page.read_text()
    fence = r"(?:^<!-- (?P<note>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    found = re.finditer(fence, text, re.MULTILINE | re.DOTALL)
    return [Block(m["language"], m["text"], m["note"] or "", text.count("\n", 0, m.start("text"))) for m in found]


def prose(page: pathlib.Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```\w*\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block, a program of a virtual environment by its bare name."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words:
                yield [re.sub(r"^(\.venv/bin/)?(python)3?$", r"\2", words[0]).removeprefix(".venv/bin/"), *words[1:]]


def shell(block: Block, folder: pathlib.Path, cache: pathlib.Path) -> str:
    """Runs, or checks, the commands of a block; returns what they printed."""
    runs = block.note.startswith("runs")
    more = shlex.split(block.note.removeprefix("runs").removeprefix(":")) if runs else []
    return "".join(one_command(words, runs, more, folder, cache) for words in commands(block.text))


def one_command(words: list[str], runs: bool, more: list[str], folder: pathlib.Path, cache: pathlib.Path) -> str:
    program, module = words[0], words[2] if words[1:2] == ["-m"] else ""
    if program == "python" and module == "vlm_jax.launch":
        return in_process([*words[3:], *([] if "--dry_run" in words else ["--dry_run"])], launch)
    if program == "python" and module in (
        "vlm_jax.main",
        "vlm_jax.checkpoint",
        "vlm_jax.data",
        "vlm_jax.data.tokenizers",
        "vlm_jax.evaluate",
        "vlm_jax.export",
        "vlm_jax.replay",
    ):
        if module == "vlm_jax.main" and not runs:
            return in_process([*words[3:], "--print_config"])
        return in_a_process([sys.executable, "-m", module, *words[3:], *more], folder, cache)
    assert not runs, f"{words} is not run"
    if program == "python" and module == "pytest":
        assert all((ROOT / path).exists() for path in words[3:] if path.startswith("tests")), words
    else:
        assert (module or program) in (*SETTING_UP, *ELSEWHERE), f"no test for the command {words}"
    return ""


def in_process(argv: list[str], program: Callable[[list[str]], int] = main) -> str:
    """`python -m vlm_jax.main`, or `.launch`; whether it fails is for the page to say, with the error as its output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = program(argv)
    assert code == (2 if out.getvalue().startswith("error: ") else 0)
    return out.getvalue()


def in_a_process(argv: list[str], folder: pathlib.Path, cache: pathlib.Path) -> str:
    """A command as a new user gives it, on one CPU device; programs are compiled fast and kept for the next command."""
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "XDG_CACHE_HOME")}
    env |= {"HOME": str(folder / "home")}  # what earlier runs of this user left in caches would be printed
    env |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    differs = argv[2:4] == ["vlm_jax.checkpoint", "diff"]
    last = done.stderr.rstrip("\n").rpartition("\n")[2]
    failed = last.startswith("error: ")  # whether it may is for the page to say
    assert done.returncode == (2 if failed else 1 if differs else 0), done.stdout + done.stderr
    return done.stdout + (f"{last}\n" if failed else "")


def holds(printed: str, lines: str) -> None:
    """Asserts that the lines occur in what was printed, in their order."""
    at = 0
    for line in lines.splitlines():
        found = printed.find(line, at)
        assert found >= 0, f"{line!r} is not in:\n{printed}"
        at = found + len(line)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("compiled")


LONG = ("faults.md", "weights.md", "library.md", "evaluation.md", "results.md", "plan.md", "checkpoints.md", "tasks.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.full if page.name in LONG else ()) for page in RUNNING],
    ids=[page.name for page in RUNNING],
)
def test_page_runs(page, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names, printed, imported = {"__name__": page.stem}, "", set(sys.modules)
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.note == "output":
            holds(printed, block.text)
        elif block.note.startswith("file: "):
            (tmp_path / block.note.removeprefix("file: ")).write_text(block.text)
            importlib.invalidate_caches()
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * block.line + block.text, where, "exec"), names)
            printed = out.getvalue()
        elif block.language == "bash":
            printed = shell(block, tmp_path, cache)
            assert "error: " not in printed or says_error(page, block), f"{where}: {printed}"
        else:
            assert block.language == "text", f"{where}: {block.language!r} is not tested"
    for name in set(sys.modules) - imported:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    if page.name == "getting_started.md":
        explains_every_metric(page, tmp_path / "workdirs/siglip_tiny")
        explains_every_file(page, tmp_path / "workdirs/siglip_tiny")


def says_error(page: pathlib.Path, block: Block) -> bool:
    """Whether the page shows an error as the output of this block."""
    found = blocks(page)
    following = found[found.index(block) + 1 :]
    return bool(following and following[0].note == "output" and following[0].text.startswith("error: "))


def explains_every_metric(page: pathlib.Path, workdir: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    written = {name for line in lines for name in line if name != "step"}
    tables = "".join(re.findall(r"^\|.*\|$", page.read_text(), re.MULTILINE))
    training, evaluation = tables.split("| `eval/` |")
    explained = {f"train/{name}" for name in re.findall(r"`(\w+)`", training.split("| `train/` |")[1].split("|  |")[0])}
    assert {name for name in written if name.startswith("train/")} <= explained
    for name in written:
        if name.startswith("eval/"):
            last = name.rpartition("/")[2]
            assert re.search(rf"`(NAME/)?{re.sub(r'_r[0-9]+$', '_r1', last)}`", evaluation), f"{name} is not explained"


def explains_every_file(page: pathlib.Path, workdir: pathlib.Path) -> None:
    text = page.read_text()
    for path in workdir.iterdir():
        assert re.search(rf"`{path.name}(/\w*)*`", text), f"{path.name} is not explained"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if not target.startswith(("https://", "mailto:")):
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            assert file.is_file(), f"{page.name} links to {target}"
            if heading:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    """Words in capitals stand for anything."""
    for path in re.findall(rf"(?<![\w/.]){FOLDERS}/[\w./-]*", page.read_text()):
        pattern = re.sub(r"\b[A-Z]{2,}\b", "*", path.rstrip("/."))
        assert list(ROOT.glob(pattern)), f"{page.name} mentions {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_prose_exist(page):
    for code in re.findall(r"`([^`]+)`", prose(page)):
        for name in re.findall(r"\bvlm_jax(?:\.\w+)+", code):
            assert exists(name), f"{page.name} mentions {name}"
        for name in re.findall(r"(?<![\w.])[a-z_]+(?:\.[a-z_0-9]+)*\.[A-Z]\w+", code):
            if not name.startswith(("vlm_jax.", "my_project.", "config.")):
                assert configs.resolve(name)
        for flag in re.findall(r"(--(?:config\.|bind=).*)", code):
            if "VALUE" not in flag and "…" not in flag and "PATH" not in flag:
                in_page = in_process(["--config=siglip_b16", *shlex.split(flag), "--print_config"])
                assert "error: " not in in_page, f"{page.name}: {flag}: {in_page}"
        for key in re.findall(r"(?<!-)\bconfig(?:\.[a-z_]+)+(?!\.?[\w(])", code):
            if not key.endswith((".md", ".py", ".json")):
                assert has_key(key), f"{page.name} mentions {key}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return hasattr(importlib.import_module(module), last)
    return True


@functools.cache
def has_key(key: str) -> bool:
    """Whether `config.a.b` is a parameter of a recipe."""
    node = configs.fill(configs.load("siglip_b16"))
    for part in key.split(".")[1:]:
        if not hasattr(node, "__getitem__") or part not in node:
            return False
        node = node[part]
    return True


def test_readme_names_every_recipe():
    text = (ROOT / "README.md").read_text()
    assert [name for name in configs.recipes() if f"`{name}`" not in text] == []


def test_readme_links_to_every_page():
    """To those of a folder of `docs/` through its index."""
    readme, index = (ROOT / "README.md").read_text(), (ROOT / "docs/launch/index.md").read_text()
    linked = lambda page: (
        f"({page.relative_to(ROOT)})" in readme or (page.parent.name == "launch" and f"({page.name})" in index)
    )
    assert [page.name for page in PAGES[1:] if not linked(page)] == []
