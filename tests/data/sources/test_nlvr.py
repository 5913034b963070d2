"""NLVR: what records hold, and that nothing of a scene is on both sides of a fold."""

import hashlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.nlvr import NLVR
from vlm_jax.errors import UserError


def write(folder, scenes, sentences=None, name="dev.parquet"):
    """A row for every (sentence number, scene number): the images of a scene are its number and a rendering's."""
    rows = [
        {
            "images": [{"bytes": f"{scene}:{k}".encode(), "path": None} for k in range(6)],
            "sentence": f"sentence {sentence}",
            "label": k % 2 == 0,
            "identifier": f"{sentence}-{k}",
        }
        for k, (sentence, scene) in enumerate(scenes)
    ]
    path = folder / name
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return str(path)


def test_records(tmp_path):
    source = NLVR(write(tmp_path, [(7, 0), (7, 1)]), renderings=2)
    assert len(source) == 4 and source.name == "nlvr/dev"
    assert source[3] == {
        "messages": [
            {"role": "user", "content": "<image>\nsentence 7"},
            {"role": "assistant", "content": "false"},
        ],
        "images": [b"1:1"],
        "type": "true or false",
        "cluster": 0,
        "key": "dev.parquet:1:7-1:1",
    }
    assert source[0]["messages"][1]["content"] == "true"
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    with pytest.raises(IndexError, match="asked for number 4"):
        source[4]


pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=4, max_size=24)


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(2, 4))
def test_no_sentence_and_no_scene_is_on_both_sides(tmp_path_factory, scenes, folds):
    path = write(tmp_path_factory.mktemp("nlvr"), scenes)
    try:
        sources = {(s, k): NLVR(path, s, k, folds) for s in ("train", "test") for k in range(folds)}
    except UserError:
        return  # fewer clusters than folds
    tested = []
    for fold in range(folds):
        of = {split: [sources[split, fold][k] for k in range(len(sources[split, fold]))] for split in ("train", "test")}
        for entry in (lambda r: r["messages"][0]["content"], lambda r: r["images"][0], lambda r: r["cluster"]):
            assert not {entry(r) for r in of["train"]} & {entry(r) for r in of["test"]}
        assert len(of["train"]) + len(of["test"]) == len(scenes)
        tested += [r["key"] for r in of["test"]]
    assert sorted(tested) == sorted(NLVR(path)[k]["key"] for k in range(len(scenes)))


def test_a_scene_binds_sentences_together_also_by_way_of_others(tmp_path):
    """Sentences 0 and 1 share scene 5, 1 and 2 share scene 6; 3 and 4 stand alone."""
    source = NLVR(write(tmp_path, [(0, 1), (0, 5), (1, 5), (1, 6), (2, 6), (3, 7), (4, 8)]))
    assert [source[k]["cluster"] for k in range(7)] == [0, 0, 0, 0, 0, 5, 6]
    sizes = sorted(len(NLVR(source.path, "test", fold, 3)) for fold in range(3))
    assert sizes == [1, 1, 5]


def test_fingerprints_tell_folds_apart(tmp_path):
    path = write(tmp_path, [(k, k) for k in range(6)])
    options = [("all", 0, 5, 1), ("train", 0, 5, 1), ("test", 0, 5, 1), ("test", 1, 5, 1), ("test", 0, 4, 1)]
    assert len({NLVR(path, *o).fingerprint for o in [*options, ("all", 0, 5, 6)]}) == 6


def test_a_tokenizer_learns_from_the_split_alone(tmp_path):
    path = write(tmp_path, [(k, k) for k in range(6)])
    for split in ("train", "test"):
        source = NLVR(path, split, 1, 3, renderings=6)
        records = [source[k]["messages"] for k in range(0, len(source), 6)]
        texts = [t for asked, told in records for t in (asked["content"].removeprefix("<image>\n"), told["content"])]
        assert list(source.captions()) == texts and list(source.captions(3)) == texts[:3]


def test_mistakes(tmp_path):
    path = write(tmp_path, [(0, 0), (1, 1)])
    with pytest.raises(UserError, match=r"split='tset'.*'test'"):
        NLVR(path, "tset")
    with pytest.raises(UserError, match="fold=5"):
        NLVR(path, fold=5)
    with pytest.raises(UserError, match="renderings=7"):
        NLVR(path, renderings=7)
    with pytest.raises(UserError, match="no rows in split='test', fold=2 of 3"):
        NLVR(path, "test", 2, 3)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["label"]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column 'label'"):
        NLVR(str(tmp_path / "other.parquet"))
    empty = table.set_column(1, "sentence", pa.array([None, "x"]))
    pq.write_table(empty, tmp_path / "holes.parquet")
    with pytest.raises(UnreadableRecord, match=r"holes.parquet:0 is unreadable: it lacks its sentence"):
        NLVR(str(tmp_path / "holes.parquet"))[0]


def test_the_real_data(shared_data):
    """989 rows in five folds of about the same size; 267 sentences, of which some are about the same scenes."""
    path = str(shared_data / "nlvr" / "dev.parquet")
    folds = [NLVR(path, "test", fold, renderings=6) for fold in range(5)]
    sizes = [len(source) // 6 for source in folds]
    assert sum(sizes) == 989 and max(sizes) - min(sizes) <= 2
    of_scene = {}
    for number, source in enumerate(folds):
        for k in range(len(source)):
            record = source[k]
            of_scene.setdefault(hashlib.sha256(record["images"][0]).digest(), set()).add(number)
    assert all(len(numbers) == 1 for numbers in of_scene.values())
    whole = NLVR(path)
    assert len({whole[k]["cluster"] for k in range(989)}) == 251
