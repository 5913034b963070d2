"""Cross-validation on NLVR: every sentence is answered once, and all answers are scored together."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import nlvr

SMALL = ["--config=nlvr_tiny:short", "--config.total_examples=8", "--config.batch_size=8", "--config.tokenizer=bytes"]
SMALL += ["--config.optimizer.schedule.warmup_steps=1"]
SMALL += [f"--config.task.model.{part}.depth=1" for part in ("image", "decoder")]
SMALL += ["--config.task.model.image.width=24", "--config.task.model.image.stem_channels=(8,)"]


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (40, 10), (shade, shade, shade)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(path, sentences=5, scenes=2):
    """Two scenes for each sentence, of which one makes it true."""
    rows = [
        {
            "images": [png(10 * (2 * sentence + scene) + rendering) for rendering in range(6)],
            "sentence": f"There are {sentence} black blocks.",
            "label": scene == 0,
            "identifier": f"{sentence}-{scene}",
        }
        for sentence in range(sentences)
        for scene in range(scenes)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.full
def test_the_command_answers_every_sentence_once(tmp_path, capsys):
    write(tmp_path / "dev.parquet")
    arguments = [f"--data={tmp_path}/dev.parquet", "--folds=2", f"--workdir={tmp_path}/runs", *SMALL]
    arguments += [f"--config.compilation_cache={tmp_path}/compiled"]
    nlvr.main([*arguments, f"--output={tmp_path}/found.json"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sentences"] == 10 and found["clusters"] == 5
    assert sorted(fold["sentences"] for fold in found["folds"]) == [4, 6]
    assert found["majority"] == found["majority_low"] == found["majority_high"] == 0.5  # of every sentence one is true
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    assert found["over_majority"] == pytest.approx(found["accuracy"] - 0.5)
    assert "fold 1: accuracy" in capsys.readouterr().out
    answers = [nlvr.results.read(f"{tmp_path}/runs/fold_{fold}")["answers"].rows()["answers"] for fold in (0, 1)]
    assert not set(answers[0]["cluster"]) & set(answers[1]["cluster"])


def test_mistakes_stop_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        nlvr.main([f"--data={tmp_path}/none.parquet", f"--workdir={tmp_path}/runs", *SMALL])
    assert stopped.value.code == 2 and "none.parquet" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def rows(cluster, accuracy, majority):
    answer = np.where(np.array(accuracy) > 0, "true", "false")
    return {
        "cluster": np.array(cluster),
        "accuracy": np.array(accuracy),
        "majority": np.array(majority),
        "answer": answer,
    }


def test_folds_count_by_their_sentences():
    found = nlvr.pooled([rows([0, 0, 1], [1, 1, 1], [1, 0, 1]), rows([5], [0], [1])])
    assert (found["accuracy"], found["majority"], found["over_majority"]) == (0.75, 0.75, 0)
    assert (found["sentences"], found["clusters"]) == (4, 3)
    assert found["folds"][0] == {"accuracy": 1, "majority": 0.6667, "sentences": 3, "answered true": 3}


def test_intervals_draw_clusters():
    """Four answers that are right or wrong together are one observation, not four."""
    right = np.arange(40) % 2
    alone = nlvr.pooled([rows(np.arange(160), np.repeat(right, 4), np.ones(160))])
    bound = nlvr.pooled([rows(np.repeat(np.arange(40), 4), np.repeat(right, 4), np.ones(160))])
    width = lambda found: found["accuracy_high"] - found["accuracy_low"]
    assert width(bound) > 1.7 * width(alone)
    assert bound["over_majority_high"] < 0
