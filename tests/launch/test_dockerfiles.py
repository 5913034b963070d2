"""Dockerfiles: a pinned base, what the build copies is there, and the extras are those of setup.py."""

import json
import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = [ROOT / "launch/Dockerfile.tpu", ROOT / "launch/Dockerfile.gpu"]
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its words) of a Dockerfile, comments left out and lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    parsed = [tuple(line.split(None, 1)) for line in lines if line.strip()]
    assert all(len(one) == 2 and one[0] in KNOWN for one in parsed), parsed
    return parsed


def only(parsed: list[tuple[str, str]], name: str) -> list[str]:
    return [words for instruction, words in parsed if instruction == name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_base_is_pinned(path):
    parsed = instructions(path.read_text())
    assert parsed[0][0] == "FROM"
    (base,) = only(parsed, "FROM")
    assert re.fullmatch(r"[\w/.-]+:\d+\.\d+\.\d+[\w.-]*", base)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_enough(path):
    """setup.py reads the README and installs these three folders."""
    copied = {word for words in only(instructions(path.read_text()), "COPY") for word in words.split()[:-1]}
    assert copied == {"setup.py", "pyproject.toml", "README.md", "configs", "launch", "vlm_jax"}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize(("path", "extra"), zip(FILES, ("tpu", "cuda")), ids=("tpu", "gpu"))
def test_it_installs_an_extra_that_there_is_and_starts_main(path, extra):
    parsed = instructions(path.read_text())
    assert f"EXTRAS={extra}" in only(parsed, "ARG")
    assert f'"{extra}": [' in (ROOT / "setup.py").read_text()
    assert any(words.startswith('pip install ".[${EXTRAS}]"') for words in only(parsed, "RUN"))
    (entry,) = only(parsed, "ENTRYPOINT")
    assert json.loads(entry) == ["python", "-m", "vlm_jax.main"]


def test_gpu_container_is_not_root():
    parsed = instructions(FILES[1].read_text())
    assert only(parsed, "USER") == ["${UID}"] and "UID=1000" in only(parsed, "ARG")
    names = [name for name, _ in parsed]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_parser_finds_mistakes():
    for wrong in ("FORM python:3.12.11", "FROM", "RUN pip install x\nINSTALL y"):
        with pytest.raises(AssertionError):
            instructions(wrong)


HADOLINT = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint(path):
    done = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
