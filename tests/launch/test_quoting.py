"""Whatever is in a value reaches the program as it was given: through bash, YAML and Kubernetes."""

import re
import shlex
import subprocess

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.launch.cases import CASES, rendered
from vlm_jax.launch.command import shown
from vlm_jax.launch.job import Job
from vlm_jax.launch.render import Launch, fill, kubernetes_arguments, shell_word, shell_words, yaml_string
from vlm_jax.launch.topology import Topology

# What an argument of a program may be: no NUL, no half of a surrogate pair.
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))
SPECIAL = st.text("\"'`$(){}[]|&;<>*?!#~=%,\\ \t\n\r\x85\u2028aé中{")
VALUES = st.lists(TEXT | SPECIAL, min_size=1, max_size=5)
NASTY = [
    "a b",
    "it's",
    "$HOME $(id) `id`",
    "$$(A) $(A)",
    "a,b",
    "{{ name }}",
    "line\nbreak",
    "\\",
    "",
    "#no",
    "é\x85\u2028",
]


def echoed(script: str) -> list[str]:
    """What bash made of the array `arguments`."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=60, deadline=None)
@given(VALUES)
@example(NASTY)
def test_bash(values):
    array = f"arguments=(\n  {shell_words(values)}\n)\n"
    assert echoed(array + 'printf "%s\\0" "${arguments[@]}"') == values
    assert "\n" not in "".join(map(shell_word, values))


@given(TEXT | SPECIAL)
def test_printable_words_are_what_shlex_reads(value):
    if value.isprintable():
        assert shlex.split(shell_word(value)) == [value]


@given(TEXT | SPECIAL)
@example("".join(NASTY))
@example("😀\x7f\ufeff")
def test_yaml(value):
    assert yaml.safe_load(f"key: {yaml_string(value)}") == {"key": value}


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of an argument: `$$` is `$`, `$(NAME)` a variable where there is one, the rest as it is."""
    one = lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0])
    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


@given(VALUES)
@example(NASTY)
def test_kubernetes(values):
    arguments = yaml.safe_load(kubernetes_arguments(values))
    assert [expanded(argument, {"A": "no", "": "no"}) for argument in arguments] == values


@settings(max_examples=20, deadline=None)
@given(value=TEXT | SPECIAL)
@example("\n".join(NASTY))
def test_whole_files(value):
    """A value of the config, through each target's template."""
    word = f"--config.tokenizer={value}"
    for name in ("gke", "queued", "slurm", "skypilot_gpu"):
        launch = rendered([*CASES[name], word])
        (text,) = [text for file, text in launch.files.items() if file != "follow.sh"]
        if name == "gke":
            document = yaml.safe_load(text)
            pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
            assert word in [expanded(argument, {}) for argument in pod["containers"][0]["args"]]
            continue
        script = yaml.safe_load(text)["run"] if name == "skypilot_gpu" else text
        array = re.search(r"^arguments=\(\n.*?^\)$", script, re.MULTILINE | re.DOTALL)[0]
        assert word in echoed(array + '\nprintf "%s\\0" "${arguments[@]}"')


@given(VALUES)
@example(NASTY)
def test_commands_are_shown_as_a_shell_reads_them(values):
    job = Job("name", Topology("cpu", (1,)), (), "siglip_tiny", None)
    text = shown(Launch({}, (("program", *values),), ()), job)
    assert shlex.split(text.removeprefix("$ ")) == ["program", *values]


def test_a_template_takes_exactly_its_values():
    values = dict(package="p", uv="1")
    assert "'{{ uv }}'" in fill("startup_package.sh", **values | {"package": "'{{ uv }}'"})
    for wrong in ({"package": "p"}, values | {"more": "m"}):
        try:
            fill("startup_package.sh", **wrong)
        except KeyError:
            continue
        raise AssertionError(wrong)
