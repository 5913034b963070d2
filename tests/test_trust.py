"""The config of a workdir says nothing of where native code is loaded from, the command line does."""

import dataclasses
import json

import pytest

from tests.helpers import small_config, small_experiment
from vlm_jax import config as configs
from vlm_jax import trust
from vlm_jax.main import main

PATH = "xla_gpu_cuda_data_dir"


@pytest.mark.parametrize("stage", ["", "stages.a."])
def test_a_workdir_gives_the_compiler_no_paths(tmp_path, capsys, stage):
    stored = json.loads(configs.to_json(small_config()))
    inside = stored["stages"].setdefault("a", {}) if stage else stored
    inside["compiler_options"] = {"xla_number": 1, "xla_flag": True, PATH: "/their/own"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    show = [f"--config={tmp_path}", "--print_config"]
    assert main(show) == 2
    line = capsys.readouterr().err
    assert f"{tmp_path} sets config.{stage}compiler_options.{PATH}='/their/own'" in line and line.count("\n") == 1
    assert main([*show, f"--config.{stage}compiler_options.{PATH}=/their/own"]) == 0
    inside["compiler_options"].pop(PATH)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert main(show) == 0


def test_a_workdir_brings_no_programs(tmp_path):
    said = []
    experiment = small_experiment(tmp_path)
    allowed = lambda cache, *given: (
        trust.without_cache(
            dataclasses.replace(experiment, compilation_cache=cache), "w", given, said.append
        ).compilation_cache
    )
    usual = type(experiment).compilation_cache
    assert allowed(usual) == usual and allowed(None) is None
    assert allowed("w/mine", "seed", "compilation_cache") == "w/mine" and not said
    assert allowed("w/mine", "seed") is None
    assert said == [
        "warning: w sets config.compilation_cache=w/mine, and programs are not loaded from where a file says; "
        "if it is yours, give --config.compilation_cache=w/mine"
    ]
