"""The command line: a mistake is one line and exit code 2, told before a device is touched; nothing is left behind."""

import os
import pathlib
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import small_flags
from vlm_jax import workdirs
from vlm_jax.errors import UserError
from vlm_jax.main import main, split_overrides


def refused(arguments: list[str], capsys, code: int = 2) -> str:
    """The one line that the program stops with."""
    assert main(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


ERRORS = {
    "no config": ([], "--config=NAME is missing; recipes: .*siglip_tiny"),
    "unknown config": (["--config=siglip_b15"], "did you mean 'siglip_b16'"),
    "missing file": (["--config=nowhere.py"], "nowhere.py: no such file"),
    "unknown variant": (["--config=siglip_b16:ful"], "has no variant 'ful'; did you mean 'full'"),
    "unknown flag": (
        ["--config=siglip_tiny", "--workdri=x"],
        "unknown argument '--workdri=x'; did you mean '--workdir'",
    ),
    "misspelt key": (
        ["--config=siglip_tiny", "--config.task.model.image.dept=3"],
        r"config.task.model.image.dept: ViT has no parameter 'dept'; did you mean 'depth'",
    ),
    "misspelt key at the root": (["--config=siglip_tiny", "--config.batch_sise=3"], "did you mean 'batch_size'"),
    "wrong type": (["--config=siglip_tiny", "--config.batch_size=many"], "config.batch_size='many' .* takes int"),
    "wrong word": (["--config=siglip_tiny", "--config.task.objective=sigmod"], "did you mean 'sigmoid'"),
    "misspelt bind": (["--config=siglip_tiny", "--bind=Vit.depth=3"], "binds no 'Vit'; did you mean 'ViT'"),
    "bind without a parameter": (["--config=siglip_tiny", "--bind=ViT.dept=3"], "did you mean 'depth'"),
    "image size": (
        ["--config=siglip_tiny", "--config.task.model.image.image_size=33", "--config.image.size=33"],
        "image_size=33.*patch_size=8",
    ),
    "sizes that disagree": (["--config=siglip_tiny", "--config.image.size=64"], "the model takes images of 32"),
    "two units": (
        ["--config=siglip_tiny", "--config.total_steps=5", "--config.total_examples=64"],
        "total_steps=5 and total_examples=64",
    ),
    "a warm-up that does not fit": (
        ["--config=siglip_tiny", "--config.total_steps=5"],
        "warm-up of 100 steps does not fit",
    ),
    "no average to evaluate": (["--config=siglip_tiny", "--bind=ZeroShot.weights=ema"], "weights=ema needs config.ema"),
    "two units of an evaluator": (
        ["--config=siglip_tiny", "--config.evals.retrieval.every_steps=1", "--config.evals.retrieval.every_percent=1"],
        "every_steps=1 and every_percent=1 are both given",
    ),
    "a bucket as workdir": (["--config=siglip_tiny", "--workdir=gs://bucket/run"], "is no local folder"),
    "infinity": (["--config=siglip_tiny", "--config.batch_size=1e999"], "takes int"),
    "a flag with a value": (["--config=siglip_tiny", "--dry_run=1"], "--help lists the arguments"),
    "an axis twice": (["--config=siglip_tiny", "--config.mesh.rules=(('.*','fsdp,fsdp'),)"], "names an axis twice"),
    "nothing to evaluate": (["--config=siglip_tiny", "--evaluate_only"], "new has no checkpoint to evaluate"),
    "no tokenizer": (["--config=siglip_b16:full"], "python -m vlm_jax.data.tokenizers train --output"),
    "unreadable tokenizer": (["--config=siglip_tiny", "--config.tokenizer={tmp}/bad.model"], r"bad\.model"),
    "missing tokenizer": (["--config=siglip_tiny", "--config.tokenizer={tmp}/none.model"], r"none\.model"),
    "missing data": (["--config=siglip_cifar10", "--config.data.source.path={tmp}/no-*.parquet"], r"no-\*\.parquet"),
    "not parquet": (["--config=siglip_cifar10", "--config.data.source.path={tmp}/bad.parquet"], r"bad\.parquet"),
    "workdir is a file": (["--config=siglip_tiny", "--workdir={tmp}/bad.model"], "is a file; name a folder"),
    "bad microbatches": (["--config=siglip_tiny", "--config.microbatches=3"], "microbatches=3 does not divide"),
    "unknown stage": (["--config=siglip_tiny", "--stage=second"], "there is no stage .second.: the recipe has none"),
    "override without value": (["--config=siglip_tiny", "--config.seed"], "--config.seed needs a value"),
    "no optimizer of that name": (["--config=siglip_tiny", "--config.optimizer.name=adam"], "did you mean 'adamw'"),
    "workdir with bytes that are no text": (["--config={tmp}/bytes"], "bytes/config.json cannot be read: .*utf-8"),
    "workdir below a file": (
        ["--config=siglip_tiny", "--workdir={tmp}/bad.model/run"],
        "bad.model/run cannot be written: .*bad.model is no folder",
    ),
    "workdir of another config": (["--config=siglip_tiny", "--config.seed=1", "--workdir={tmp}/run"], "seed: 0 -> 1"),
}


@pytest.fixture
def folder(tmp_path, capsys):
    """Broken files, and a workdir that was begun with siglip_tiny."""
    (tmp_path / "bad.model").write_bytes(b"this is no model")
    (tmp_path / "bad.parquet").write_bytes(b"this is no parquet")
    (tmp_path / "run").mkdir()
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "config.json").write_bytes(b'{"seed": "\xff"}')
    from vlm_jax import config as configs

    (tmp_path / "run" / "config.json").write_text(configs.to_json(configs.load("siglip_tiny")))
    return tmp_path


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_are_one_line(name, folder, capsys):
    arguments, says = ERRORS[name]
    if "--workdir" not in " ".join(arguments):
        arguments = [f"--workdir={folder}/new", *arguments] if arguments else []
    before = sorted(folder.rglob("*"))
    line = refused([a.replace("{tmp}", str(folder)) for a in arguments], capsys)
    assert re.search(says, line), line
    assert sorted(folder.rglob("*")) == before  # nothing is lost or half-written


def test_a_workdir_that_may_not_be_written_to(tmp_path, monkeypatch):
    workdirs.check_writable(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)  # root may write to all
    with pytest.raises(UserError, match=f"{tmp_path} may not be written to; name another"):
        workdirs.check_writable(tmp_path / "a" / "b")


def test_no_device_is_touched_before_mistakes_are_told(folder):
    """A platform that does not exist: whoever asks for a device fails with something else."""
    script = "import sys; from vlm_jax.main import main; sys.exit(max(main(a.split('|')) for a in sys.argv[1:]) * 10)"
    cases = [
        "--config=siglip_tiny|--config.batch_size=x",
        "--config=siglip_b16:full",
        "--config=siglip_l16|--print_config",
    ]
    cases += [f"--config=siglip_tiny|--config.tokenizer={folder}/bad.model", "--help"]
    cases += [f"--config=siglip_tiny|--config.seed=1|--workdir={folder}/run"]
    env = {**os.environ, "JAX_PLATFORMS": "nonexistent"}
    done = subprocess.run([sys.executable, "-c", script, *cases], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 20, done.stderr
    assert done.stderr.count("error: ") == 4 and "Traceback" not in done.stderr


def test_help_needs_no_jax_and_print_config_no_device(tmp_path):
    script = "import sys; from vlm_jax.main import main; main(['--help']); sys.exit('jax' in sys.modules or "
    script += "main(['--config=siglip_tiny', '--print_config']) or bool(sys.modules['jax']._src.xla_bridge._backends))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path).returncode == 0


def test_a_batch_that_does_not_divide_over_the_devices(tmp_path, capsys):
    flags = small_flags(batch_size="12", total_examples="48")
    line = refused(["--config=siglip_tiny", f"--workdir={tmp_path}/w", *flags], capsys)
    assert "batch_size=12 is not divisible by the 8 devices" in line and "8 or 16" in line
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_print_config_shows_overrides(capsys):
    assert main(["--config=siglip_tiny", "--config.seed", "7", "--bind=ViT.depth=1e0", "--print_config"]) == 0
    out = capsys.readouterr().out
    assert "\nseed = 7\n" in out and "task.model.image.depth = 1\n" in out and "set on 1 component\n" in out


def test_a_bind_is_told_without_its_secret(capsys):
    bind = "--bind=Experiment.init_from=https://me:p@ss@host/a?sig=0123"
    assert main(["--config=siglip_tiny", bind, "--print_config"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("--bind Experiment.init_from=https://***@host/a?sig=***: set on 1 component\n")
    assert "0123" not in out


def test_help_lists_every_recipe(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for path in pathlib.Path("configs").glob("[a-z]*.py"):
        assert f"  {path.stem} " in out


def test_overrides_are_taken_out_of_the_arguments():
    rest, found = split_overrides(["--config=a:b", "--config.x.y=1=2", "--config.z", "3", "--dry_run"])
    assert rest == ["--config=a:b", "--dry_run"] and found == [("x.y", "1=2"), ("z", "3")]


def test_missing_columns_name_those_that_are_there(tmp_path, capsys):
    pq.write_table(pa.table({"image": [b"x"], "class": ["cat"]}), tmp_path / "a.parquet")
    flags = [f"--config.data.source.path={tmp_path}/a.parquet", f"--workdir={tmp_path}/w"]
    line = refused(["--config=siglip_cifar10", *flags], capsys)
    assert "class_name" in line and "class" in line
