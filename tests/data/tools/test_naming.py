"""What a command line calls a source, and which source that is."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlm_jax.data.sources.shapes import Shapes
from vlm_jax.data.tools.naming import open_source
from vlm_jax.data.writers import FORMATS, convert
from vlm_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def captions(source) -> list[list[str]]:
    texts = [source[k]["text"] for k in range(len(source))]
    return [[text] if isinstance(text, str) else list(text) for text in texts]


@pytest.mark.parametrize("form", FORMATS)
def test_what_convert_wrote_opens_by_its_folder(form, tmp_path):
    shapes = Shapes(size=7)
    convert(shapes, tmp_path / "out", form, shard_records=4)
    source = open_source(str(tmp_path / "out"))
    assert captions(source) == captions(shapes)


def test_patterns_and_files_go_by_their_extension(tmp_path):
    for form in ("tar", "parquet", "array_record"):
        convert(Shapes(size=4), tmp_path / form, form, shard_records=2)
    assert open_source("tar/*.tar").KIND == "webdataset"
    assert len(open_source("parquet/{00000..00001}.parquet")) == 4
    assert open_source("array_record/00001.array_record").KIND == "array_record"
    assert len(open_source("tar/*.tar", [("limit", "3"), ("text", "json:text")])) == 3


def test_folders_of_images(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "photos" / name)
    assert open_source("photos").class_names == ("cat", "dog")
    for name in ("cat/a.txt", "dog/b.txt"):
        (tmp_path / "photos" / name).write_text(f"a photo of {name}")
    assert captions(open_source("photos")) == [["a photo of cat/a.txt"], ["a photo of dog/b.txt"]]
    (tmp_path / "photos/metadata.jsonl").write_text(json.dumps({"file_name": "dog/b.png", "text": "listed"}))
    assert captions(open_source("photos")) == [["listed"]]


def test_shapes_recipes_and_components():
    assert len(open_source("shapes", [("size", "12")])) == 12
    assert len(open_source("data.sources.shapes.Shapes", [("size", "11")])) == 11
    assert open_source(recipe="siglip_tiny").name == open_source("shapes").name


def test_a_part_of_a_mixture(tmp_path):
    (tmp_path / "mixed.py").write_text(
        "from vlm_jax.config import bind\n"
        "def get_config(variant=''):\n"
        "    part = lambda n: bind('data.mixture.Part', source=bind('data.sources.shapes.Shapes', size=n))\n"
        "    mixture = bind('data.mixture.Mixture', parts=dict(a=part(5), b=part(6)))\n"
        "    return bind('experiment.Experiment', data=bind('data.pipeline.Pipeline', source=mixture))\n"
    )
    assert len(open_source(recipe="mixed.py", part="b")) == 6
    assert len(open_source(recipe="mixed.py", part="b", overrides=[("parts.b.source.size", "3")])) == 3
    with pytest.raises(UserError, match="--part: valid choices: a, b"):
        open_source(recipe="mixed.py")
    with pytest.raises(UserError, match="no mixture"):
        open_source("shapes", part="a")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "it is broken, or another tool's"),
        ("[]", "it is broken, or another tool's"),
        ('{"title": "birds"}', "it is broken, or another tool's"),
        ('{"format": "scroll", "unreadable": {}}', "says format='scroll', which is none"),
    ],
)
def test_a_manifest_of_others(text, line, tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/dataset.json").write_text(text)
    with pytest.raises(UserError, match=line):
        open_source("birds")


@pytest.mark.parametrize(
    ("path", "overrides", "line"),
    [
        ("phots", [], "did you mean 'photos'"),
        ("nowhere/x", [], "there is no folder 'nowhere'"),
        ("photos", [], "no data is recognised"),
        ("photos/notes.docx", [], "'.docx' says nothing"),
        ("gs://bucket/folder", [], "says nothing about its kind"),
        ("shapes", [("sise", "3")], "--source.sise: Shapes has no parameter 'sise'; did you mean 'size'"),
        ("shapes", [("size", "many")], "--source.size='many' is of the wrong type"),
        (None, [], "name either a source"),
    ],
)
def test_mistakes_are_one_line(path, overrides, line, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/notes.docx").touch()
    with pytest.raises(UserError) as caught:
        open_source(path, overrides)
    assert line in str(caught.value) and "\n" not in str(caught.value)
