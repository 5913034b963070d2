"""`python -m vlm_jax.data tokenize`: the codes of images, written once, killed and resumed, and read back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import vlm_jax
from tests.conftest import FAST
from tests.data.tools.images import Records, encoded, picture
from tests.library.workdirs import autoencoder_workdir
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.image_codes import ImageCodes
from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools import tokenize
from vlm_jax.data.tools.command import arguments, main
from vlm_jax.data.tools.naming import open_source

SOURCE = ["shapes", "--source.size=100", "--source.image_size=32"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return autoencoder_workdir(tmp_path_factory.mktemp("vq"))


@pytest.fixture(scope="module")
def written(workdir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "whole"
    assert main(command(workdir, folder)) == 0
    return folder


def command(workdir: Path, folder: Path, *more: str) -> list[str]:
    flags = ["--shard_records=8", "--batch_size=8", "--threads=1"]
    return ["tokenize", *SOURCE, f"--model={workdir}", f"--output={folder}", *flags, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_codes_are_the_models(workdir, written, capsys):
    source, model = Shapes(size=100, image_size=32), vlm_jax.load(workdir, batch_size=16)
    found = open_source(str(written))
    assert isinstance(found, ImageCodes) and len(found) == 100 and len(list(written.glob("*.parquet"))) == 13
    assert (found.codes.grid, found.codes.vocab_size, found.codes.image_size) == ((8, 8), 512, 32)
    assert found.codes.model == model.fingerprint
    codes = np.stack([found[k]["image_codes"] for k in range(100)])
    assert codes.dtype == np.int32 and len(np.unique(codes)) > 1
    np.testing.assert_array_equal(codes, model.encode_tokens([r["image"] for r in source]).reshape(100, 64))
    for k in (0, 57):
        given = source[k]["text"]
        assert found[k]["text"] == ([given] if isinstance(given, str) else list(given))
    assert list(found.captions(3)) == [text for k in range(3) for text in found[k]["text"]][:3]


def test_killed_and_started_again(workdir, written, tmp_path, capsys):
    folder = tmp_path / "killed"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST}
    process = subprocess.Popen([sys.executable, "-m", "vlm_jax.data", *command(workdir, folder)], env=environment)
    while process.poll() is None and not list(folder.glob("0*.parquet")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*.parquet")}
    assert 0 < len(finished) < 13
    assert main(command(workdir, folder)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{folder}: 100 records of 8 x 8 codes of 512, by <autoencoder of {workdir}")
    assert said[1].startswith(f"{100 - 8 * len(finished)} images in ") and said[1].endswith(" images/s")
    assert contents(folder) == contents(written)
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished


def test_what_cannot_be_read_is_told(workdir, tmp_path):
    """And classes come along. Images are of other sizes than the model's."""
    good = [{"image": encoded(picture(k)), "text": f"picture {k}", "label": k % 2} for k in range(3)]
    source = Records([*good, "it is broken", {"image": b"no image", "text": "x"}], class_names=("cat", "owl"))
    source.records[1] |= {"text": "half \ud83d"}
    flags, _ = arguments(command(workdir, tmp_path / "codes"))
    said = list(tokenize.run(source, flags))
    assert said[2] == "left out as unreadable: 3"
    assert [line.split(": ")[0].strip() for line in said[3:]] == ["file:1", "file:3", "file:4"]
    found = ImageCodes(str(tmp_path / "codes"))
    assert [record["key"] for record in found] == ["file:0", "file:2"]
    assert found.class_names == ("cat", "owl") and [record["label"] for record in found] == [0, 0]
    expected = vlm_jax.load(workdir).encode_tokens([good[0]["image"], good[2]["image"]])
    np.testing.assert_array_equal(np.stack([r["image_codes"] for r in found]), expected.reshape(2, -1))


def test_mistakes(workdir, written, tmp_path, capsys):
    def said(*argv: str) -> str:
        assert main(list(argv)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    numbers = autoencoder_workdir(tmp_path / "vae", "vae_tiny:short")
    assert "has no codes: its latents are numbers" in said(*command(numbers, tmp_path / "x"))
    assert "34 x 34 is not divisible by the encoder's stride of 4" in said(
        *command(workdir, tmp_path / "x", "--size=34")
    )
    other = autoencoder_workdir(tmp_path / "other", seed=1)
    assert "holds other work (image_codes was {" in said(*command(other, written))
    assert "--batch_size" in said(*command(workdir, tmp_path / "x", "--batch_size=0"))
    assert "holds codes of images" in said("convert", str(written), f"--output={tmp_path / 'x'}")
    assert "holds no image codes; `python -m vlm_jax.data tokenize`" in said(
        "index", "data.sources.image_codes.ImageCodes", f"--source.path={plain_parquet(tmp_path)}"
    )
    assert not (tmp_path / "x").exists()


def test_a_model_that_embeds(tmp_path, monkeypatch, workdir):
    monkeypatch.setattr(vlm_jax.library, "load", lambda *args, **options: object())
    flags, _ = arguments(command(workdir, tmp_path / "x"))
    with pytest.raises(vlm_jax.errors.UserError, match="is no autoencoder"):
        list(tokenize.run(Shapes(size=3), flags))


def plain_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "plain.parquet"
    pq.write_table(pa.table({"image_codes": [[1, 2]], "text": [["a"]], "key": ["k"]}), path)
    return path


def test_rows_that_are_wrong(written, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(written / "00000.parquet")
    rows = table.slice(0, 3).to_pylist()
    rows[0]["image_codes"][5], rows[1]["image_codes"] = 512, [1]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "wrong.parquet")
    found = ImageCodes(str(tmp_path / "wrong.parquet"))
    with pytest.raises(
        UnreadableRecord, match=r"wrong.parquet:0 is unreadable: codes \d+ to 512, where there are 0 to 511"
    ):
        found[0]
    with pytest.raises(UnreadableRecord, match="1 codes where 64 are wanted"):
        found[1]
    assert len(found[2]["image_codes"]) == 64
