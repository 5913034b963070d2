"""Parquet: every layout that is met, read at random, and mistakes named."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.tars import png, value
from tests.data.sources.threads import check_threads_and_copies
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import decode
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.parquet_table import ParquetTable
from vlm_jax.errors import UserError

NAMES = ("cat", "dog", "owl")


def write(path, rows: range, row_group_size: int = 3, struct: bool = True, **columns) -> None:
    images = [png(k) for k in rows]
    table = {
        "image": [{"bytes": image, "path": f"{k}.png"} for k, image in zip(rows, images)] if struct else images,
        "label": [k % 3 for k in rows],
        "class_name": [NAMES[k % 3] for k in rows],
        "caption": [f"caption {k}" for k in rows],
        "captions": [[f"caption {k}", f"another {k}"] for k in rows],
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=row_group_size, write_page_checksum=True)


@pytest.fixture
def folder(tmp_path):
    """20 rows in two files, 7 row groups, as both image layouts."""
    write(tmp_path / "a" / "train-0.parquet", range(11), row_group_size=4)
    write(tmp_path / "b" / "train-1.parquet", range(11, 20), row_group_size=3, struct=False)
    return tmp_path


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_rows_in_any_order(folder, cache_mb):
    source = Parquet(str(folder), text_column="caption", label_column="label", class_name_column="class_name",
                     cache_mb=cache_mb)  # fmt: skip
    assert len(source) == 20
    for index in np.random.default_rng(0).permutation(20).tolist() * 2:
        record = source[index]
        assert value(record) == index
        assert record["text"] == f"caption {index}"
        assert record["label"] == index % 3
        assert record["key"] == (f"train-0.parquet:{index}" if index < 11 else f"train-1.parquet:{index - 11}")
    for index in (20, -1):
        with pytest.raises(IndexError):
            source[index]


def test_texts(folder):
    path = str(folder)
    assert Parquet(path, text_column="captions")[5]["text"] == ["caption 5", "another 5"]
    assert "label" not in Parquet(path, text_column="caption")[5]
    templates = ("a photo of a {}.", "{}")
    record = Parquet(path, class_name_column="class_name", templates=templates)[5]
    assert record["text"] == ["a photo of a owl.", "owl"] and record["label"] == 2
    record = Parquet(path, label_column="label", classes=("x", "y", "z"))[5]
    assert record["text"] == ["a photo of a z."] and record["label"] == 2
    numbers = Parquet(path, text_column="caption", label_column="label")
    assert numbers[5]["label"] == 2 and numbers.class_names == ()


def test_names_of_columns(tmp_path):
    pq.write_table(pa.table({"jpg": [png(7)], "txt": ["seven"]}), tmp_path / "x.parquet")
    record = Parquet(str(tmp_path / "x.parquet"), image_column="jpg", text_column="txt")[0]
    assert value(record) == 7 and record["text"] == "seven"


def test_class_names_follow_the_labels(tmp_path):
    write(tmp_path / "x.parquet", range(6), label=[2, 0, 1, 2, 0, 1])
    path = str(tmp_path / "x.parquet")
    both = Parquet(path, label_column="label", class_name_column="class_name")
    assert both.class_names == ("dog", "owl", "cat")
    assert both[0]["label"] == 2 and both[0]["text"] == ["a photo of a cat."]
    assert Parquet(path, class_name_column="class_name").class_names == NAMES
    given = Parquet(path, class_name_column="class_name", classes=("owl", "dog", "cat"))
    assert given.class_names == ("owl", "dog", "cat") and given[0]["label"] == 2
    assert Parquet(path, text_column="caption").class_names == ()


def test_class_names_that_contradict_the_labels(tmp_path):
    write(tmp_path / "x.parquet", range(6), label=[0, 1, 2, 1, 1, 2])
    write(tmp_path / "y.parquet", range(6), label=[1, 2, 3, 1, 2, 3])
    for name in ("x", "y"):
        source = Parquet(str(tmp_path / f"{name}.parquet"), label_column="label", class_name_column="class_name")
        with pytest.raises(UserError, match=r"label.*class_name"):
            source.class_names  # noqa: B018


def test_class_names_of_hugging_face_features(tmp_path):
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": png(1), "path": None}], "label": [1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "x.parquet")
    source = Parquet(str(tmp_path / "x.parquet"), label_column="label")
    assert source.class_names == ("no", "yes")
    assert source[0]["text"] == ["a photo of a yes."]


def test_skip_and_limit(folder):
    part = Parquet(str(folder), text_column="caption", skip=9, limit=5)
    assert [value(part[k]) for k in range(len(part))] == [9, 10, 11, 12, 13]
    assert list(part.captions()) == [f"caption {k}" for k in range(9, 14)]
    assert len(Parquet(str(folder), text_column="caption", skip=15, limit=50)) == 5


def test_captions_for_a_tokenizer(folder):
    path = str(folder)
    assert list(Parquet(path, text_column="caption").captions(4)) == [f"caption {k}" for k in range(4)]
    assert len(list(Parquet(path, text_column="captions").captions())) == 40
    classes = Parquet(path, class_name_column="class_name", templates=("a {}", "the {}"))
    assert list(classes.captions()) == ["a cat", "the cat", "a dog", "the dog", "a owl", "the owl"]


def test_captions_read_no_images(folder, monkeypatch):
    read = []
    scan = ParquetTable.scan
    monkeypatch.setattr(
        ParquetTable, "scan", lambda self, columns, *rows: read.append(columns) or scan(self, columns, *rows)
    )
    list(Parquet(str(folder), text_column="caption").captions())
    assert read == [["caption"]]


def test_unreadable_records_name_file_and_row(tmp_path):
    write(
        tmp_path / "x.parquet",
        range(6),
        image=[None, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": ""}]
        + [{"bytes": png(3), "path": ""}] * 3,
        caption=["a", "b", "c", None, "", "f"],
        captions=[[], None, [""], [None], ["d", None], ["e"]],
        class_name=["cat", "dog", "owl", None, "cat", "cat"],
        label=[0, 1, 2, None, -1, 3],
    )
    path = str(tmp_path / "x.parquet")
    captions = Parquet(path, text_column="caption")
    for index, why in ((0, "image"), (1, "image"), (2, "image"), (3, "caption"), (4, "caption")):
        with pytest.raises(UnreadableRecord, match=why) as error:
            captions[index]
        assert error.value.key == f"x.parquet:{index}" and error.value.source == captions.name
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert captions[5]["text"] == "f"
    lists = Parquet(path, text_column="captions")
    assert lists[4]["text"] == ["d"]
    assert list(lists.captions()) == ["d", "e"]
    with pytest.raises(UnreadableRecord):
        lists[3]
    names = Parquet(path, class_name_column="class_name", classes=NAMES)
    with pytest.raises(UnreadableRecord, match="it has no class"):
        names[3]
    labels = Parquet(path, label_column="label", classes=NAMES)
    for index, why in ((3, "it has no class"), (4, "label -1"), (5, "label 3, where there are 3 classes")):
        with pytest.raises(UnreadableRecord, match=why):
            labels[index]


def test_row_groups_are_kept_within_the_limit(folder):
    table = ParquetTable(str(folder), cache_bytes=1)
    for index in range(20):
        table.row(index, ["image", "caption"])
        assert len(table._kept) == 1
    table = ParquetTable(str(folder), cache_bytes=10**6)
    for index in (0, 19, 0, 19):
        table.row(index, ["image", "caption"])
    assert len(table._kept) == 2
    assert table._kept_bytes == sum(group.nbytes for group in table._kept.values())


def test_a_kept_row_group_is_not_read_again(folder, monkeypatch):
    source = Parquet(str(folder), text_column="caption")
    reads = []
    read = ParquetTable._read
    monkeypatch.setattr(ParquetTable, "_read", lambda self, *group: reads.append(group[0]) or read(self, *group))
    for index in [*range(20), *range(20)]:
        source[index]
    assert sorted(reads) == list(range(6))


def test_threads_and_copies_read_the_same(folder):
    check_threads_and_copies(Parquet(str(folder), text_column="caption", cache_mb=0))


def test_fingerprint_is_of_the_content_and_not_of_the_place(folder, tmp_path):
    source = Parquet(str(folder / "a"), text_column="caption")
    fingerprint = source.fingerprint
    moved = tmp_path / "elsewhere"
    (folder / "a").rename(moved)
    assert Parquet(str(moved), text_column="caption").fingerprint == fingerprint
    others = [
        Parquet(str(moved), text_column="captions"),
        Parquet(str(moved), text_column="caption", skip=1),
        Parquet(str(moved), text_column="caption", limit=5),
        Parquet(str(moved), class_name_column="class_name"),
        Parquet(str(moved), class_name_column="class_name", templates=("{}",)),
        Parquet(str(folder), text_column="caption"),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 7


@pytest.mark.parametrize(
    "path, message",
    [
        ("", "empty"),
        ("a/trian-0.parquet", "did you mean 'train-0.parquet'"),
        ("c/train-0.parquet", "no 'c' in the folder"),
        ("a/test-*.parquet", "no file matches"),
        ("{x,y}/train-0.parquet", "no file matches"),
        ("none", "no *.parquet file in the folder"),
        ("text.parquet", "is not a Parquet file"),
        ("empty.parquet", "is not a Parquet file"),
        ("cut.parquet", "is not a Parquet file"),
    ],
)
def test_files_that_are_missing_or_none(folder, path, message):
    (folder / "none").mkdir()
    (folder / "text.parquet").write_text("<html>not found</html>" * 10)
    (folder / "empty.parquet").touch()
    (folder / "cut.parquet").write_bytes((folder / "a/train-0.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Parquet(str(folder / path) if path else path, text_column="caption")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text_column": "captoin"}, "did you mean 'caption'"),
        ({"text_column": "caption", "image_column": "img"}, "no column 'img' (image_column)"),
        ({"text_column": "label"}, "is int64, text_column needs strings"),
        ({"text_column": "caption", "image_column": "caption"}, "is string, image_column needs binary"),
        ({"label_column": "class_name"}, "integers (strings go into class_name_column)"),
        ({"class_name_column": "label"}, "strings (integers go into label_column)"),
        ({}, "image, label, class_name, caption, captions"),
        ({"label_column": "label"}, "numbers without names"),
        ({"class_name_column": "class_name", "templates": ("a photo",)}, "one '{}'"),
        ({"class_name_column": "class_name", "templates": ()}, "one '{}'"),
        ({"text_column": "caption", "skip": 20}, "has 20 rows, none is left after skip=20"),
        ({"text_column": "caption", "skip": -1}, "skip >= 0"),
        ({"text_column": "caption", "limit": 0}, "limit >= 1"),
    ],
)
def test_mistakes_are_named(folder, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Parquet(str(folder), **options)


def test_a_column_that_one_file_lacks_is_named_with_the_file(folder):
    pq.write_table(pa.table({"image": [png(1)], "text": ["a"]}), folder / "b" / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet has no column 'caption'"):
        Parquet(str(folder), text_column="caption")


def test_a_damaged_file_stops_the_reading(folder):
    file = folder / "a" / "train-0.parquet"
    source = Parquet(str(file), text_column="caption")
    data = bytearray(file.read_bytes())
    at = data.index(b"caption 0")
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(OSError, match=r"train-0\.parquet, row group 0"):
        source[0]
    file.unlink()
    with pytest.raises(OSError):
        source[10]


def test_cifar10(shared_data):
    columns = {"label_column": "label", "class_name_column": "class_name"}
    train = Parquet(str(shared_data / "cifar10" / "train-*.parquet"), **columns)
    test = Parquet(str(shared_data / "cifar10" / "test-00000-of-00001.parquet"), **columns)
    assert (len(train), len(test)) == (50_000, 10_000)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert list(train.class_names) == list(test.class_names) == names
    for index in np.random.default_rng(0).integers(0, 50_000, 60).tolist():
        record = train[index]
        image = decode(record["image"], min_size=32)
        assert image.shape == (32, 32, 3) and image.std() > 1
        assert record["text"] == [f"a photo of a {names[record['label']]}."]
    labels = [test[k]["label"] for k in range(10_000)]
    assert np.bincount(labels).tolist() == [1000] * 10
