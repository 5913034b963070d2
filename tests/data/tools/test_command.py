"""`python -m vlm_jax.data`: exit codes, one line a mistake, and the small tools from end to end."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vlm_jax.data import tokenizers
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools.command import TOOLS, main
from vlm_jax.data.tools.keep import write_keep
from vlm_jax.data.tools.naming import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["indx", "shapes"], "no tool 'indx'; did you mean 'index'?"),
        (["index"], "name either a source"),
        (["index", "shapes", "--limt=3"], "unknown argument '--limt=3'"),
        (["index", "shapes", "--source.size"], "--source.size needs a value"),
        (["convert", "shapes"], "--output"),
        (["convert", "shapes", "--output=x", "--format=zip"], "--format=zip: valid choices: array_record"),
        (["convert", "shapes", "--output=x", "--keep=nothing"], "the keep-list nothing cannot be read"),
        (["tokenizer", "shapes", "--output=no/x.model"], "the folder no does not exist"),
        (["tokenizer", "shapes", "--output=x.model", "--canonicalise=loudly"], "canonicalise='loudly'"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(argv, line, capsys, tmp_path):
    assert main(argv) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and line in said[0]
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_help(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        main([tool, "--help"])
    assert ended.value.code == 0 and "--config" in capsys.readouterr().out


def test_documents_are_no_pairs(tmp_path, capsys):
    row = {"text_list": ["First a scene.", "Then more."], "image_info": []}
    (tmp_path / "documents.jsonl").write_text(json.dumps(row))
    options = ["--source.path=documents.jsonl", "--source.layout=mmc4", "--source.images=."]
    assert main(["index", "data.sources.interleaved.Interleaved", *options]) == 0
    assert main(["inspect", "data.sources.interleaved.Interleaved", *options]) == 2
    assert "this tool takes images with captions" in capsys.readouterr().err


def test_the_program_starts_without_jax():
    script = (
        "import sys, vlm_jax.data.tools.command as c\n"
        "sys.exit(c.main(['index', 'shapes', '--source.size=5']) or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "shapes/train: 5 records" in done.stdout, done.stderr


def test_interrupted(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm_jax.data.tools.conversion.convert", interrupted)
    assert main(["convert", "shapes", "--output=x"]) == 130
    assert "goes on" in capsys.readouterr().err


def test_convert_writes_what_a_keep_list_names(tmp_path, capsys):
    write_keep(tmp_path / "keep.index", Shapes(size=6), np.array([0, 5]))
    argv = ["convert", "shapes", "--source.size=6", "--output=kept", "--format=parquet", "--keep=keep.index"]
    assert main(argv) == 0
    assert "kept: 2 records" in capsys.readouterr().out
    written = open_source("kept")
    shapes = Shapes(size=6)
    assert [written[k]["key"] for k in range(2)] == ["00000.parquet:0", "00000.parquet:1"]
    assert [tuple(written[k]["text"]) for k in range(2)] == [tuple(shapes[k]["text"]) for k in (0, 5)]


def test_tokenizer_is_trained_on_canonical_captions(capsys):
    assert main(["tokenizer", "shapes", "--source.size=200", "--output=x.model", "--vocab_size=200"]) == 0
    model = tokenizers.load("x.model")
    assert f"x.model: {model.vocab_size} pieces" in capsys.readouterr().out
    assert model.decode(model.encode("a small red circle")) == "a small red circle"
