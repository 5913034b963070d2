"""Readers of public sets on small files in their layouts, and what they say of files that are not."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.sources.tars import write_tar
from tests.evaluate import toy
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError
from vlm_jax.evaluate.readers.aro import LEFT_OUT, Order, VisualGenome, normalised
from vlm_jax.evaluate.readers.base import Choice
from vlm_jax.evaluate.readers.clip_benchmark import ClipBenchmark
from vlm_jax.evaluate.readers.karpathy import Karpathy
from vlm_jax.evaluate.readers.metadata import Metadata
from vlm_jax.evaluate.readers.sugar_crepe import SUBSETS, SugarCrepe
from vlm_jax.evaluate.readers.voc import CLASSES, VOC
from vlm_jax.evaluate.readers.winoground import WinogroundPairs
from vlm_jax.evaluate.zero_shot import ZeroShot
from vlm_jax.mesh import Layout


def png(path, size=(8, 6), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_sugar_crepe(tmp_path):
    for k, subset in enumerate(SUBSETS):
        case = {"filename": f"{k % 2}.png", "caption": f"right {k}", "negative_caption": f"wrong {k}"}
        (tmp_path / f"{subset}.json").write_text(json.dumps({"0": case}))
        png(tmp_path / "val2017" / f"{k}.png")
    source = SugarCrepe(str(tmp_path), str(tmp_path / "val2017"))
    assert len(source) == 2  # images
    assert source.choices(1)[0] == Choice(("right 1", "wrong 1"), "add_att")
    assert {c.subset for i in range(2) for c in source.choices(i)} == set(SUBSETS)
    assert ImageTransform(size=4)(source[0]["image"]).shape == (4, 4, 3)
    assert len(SugarCrepe(str(tmp_path), str(tmp_path / "val2017"), subsets=("add_obj",))) == 1
    with pytest.raises(UserError, match="'add'; "):
        SugarCrepe(str(tmp_path), str(tmp_path / "val2017"), subsets=("add",))
    with pytest.raises(UserError, match=r"SugarCrepe.images=.*nowhere/0.png: FileNotFoundError"):
        SugarCrepe(str(tmp_path), str(tmp_path / "nowhere"))
    (tmp_path / "add_obj.json").write_text(json.dumps({"0": {"filename": "0.png", "caption": "x"}}))
    with pytest.raises(UserError, match=r"add_obj.json, case 0, has no proper 'negative_caption'"):
        SugarCrepe(str(tmp_path), str(tmp_path / "val2017"))
    (tmp_path / "add_obj.json").write_text("{")
    with pytest.raises(UserError, match="can't be read as JSON"):
        SugarCrepe(str(tmp_path), str(tmp_path / "val2017"))


def test_visual_genome_shows_the_box_alone(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:15, 10:25] = 255
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/a.png")
    box = {"bbox_x": 10, "bbox_y": 5, "bbox_w": 15, "bbox_h": 10}
    texts = {"image_path": "a.png", "true_caption": "the cat is on the mat", "false_caption": "the mat is on the cat"}
    relation = tmp_path / "visual_genome_relation.json"
    relation.write_text(json.dumps([{**box, **texts, "relation_name": "on"}]))
    source = VisualGenome(str(relation), str(tmp_path / "images"))
    assert source[0]["image"].shape == (10, 15, 3) and (source[0]["image"] == 255).all()
    assert source.choices(0) == (Choice((texts["true_caption"], texts["false_caption"]), "on"),)
    attribution = tmp_path / "visual_genome_attribution.json"
    attribution.write_text(json.dumps([{**box, **texts, "attributes": ["white", "black"]}]))
    assert VisualGenome(str(attribution), str(tmp_path / "images")).choices(0)[0].subset == "white_black"
    attribution.write_text(json.dumps([{**box, **texts}]))
    with pytest.raises(UserError, match="case 0, has no proper 'relation_name'"):
        VisualGenome(str(attribution), str(tmp_path / "images"))
    attribution.write_text("{}")
    with pytest.raises(UserError, match="holds a dict, wanted is a list"):
        VisualGenome(str(attribution), str(tmp_path / "images"))
    assert len(LEFT_OUT) == len(set(LEFT_OUT)) == 157 and "on the other side of" in LEFT_OUT and "on" not in LEFT_OUT


def test_order(tmp_path):
    png(tmp_path / "val2014/a.jpg")
    captions = ["A man, riding a (big) horse on the beach.", "Horse"]
    file = tmp_path / "coco_karpathy_test.json"
    file.write_text(json.dumps([{"image": "val2014/a.jpg", "caption": captions}]))
    source = Order(str(file), str(tmp_path))
    (choice,) = source.choices(0)  # one word has no other order
    assert choice.texts[0] == "a man, riding a big horse on the beach" and len(choice.texts) == 3
    assert source.choices(0) == source.choices(0) and len(set(choice.texts)) == 3
    words = [sorted(text.replace(",", " ").split()) for text in choice.texts]
    assert words[0] == words[1] == words[2]
    assert normalised("One  two: three", 2) == "one two"


def test_winoground(tmp_path):
    lines = []
    for k in range(2):
        line = {"id": k, "caption_0": f"a {k}", "caption_1": f"b {k}", "collapsed_tag": "Object"}
        for j in (0, 1):
            line[f"image_{j}"] = f"ex_{k}_img_{j}"
            png(tmp_path / f"images/ex_{k}_img_{j}.png")
        lines.append(json.dumps(line))
    (tmp_path / "examples.jsonl").write_text("\n".join(lines) + "\n")
    source = WinogroundPairs(str(tmp_path / "examples.jsonl"), str(tmp_path / "images"))
    assert len(source) == 4 and source.caption(3) == "b 1" and source.tag(1) == "Object"
    assert source.image_path(3).endswith("images/ex_1_img_1.png") and source[3]["text"] == ["b 1"]
    (tmp_path / "images/ex_1_img_1.png").unlink()
    with pytest.raises(UnreadableRecord, match="there is no file"):
        source[3]
    (tmp_path / "examples.jsonl").write_text('{"caption_0": 1}\n')
    with pytest.raises(UserError, match=r"examples.jsonl:1 has no proper 'image_0'"):
        WinogroundPairs(str(tmp_path / "examples.jsonl"), str(tmp_path / "images"))
    with pytest.raises(UserError, match="there is no file"):
        WinogroundPairs(str(tmp_path / "other.jsonl"), str(tmp_path / "images"))


def test_exports_of_clip_benchmark(tmp_path):
    """Classes and prompts from the files beside the tars; images whose colour is their class."""
    root = tmp_path / "wds_toy"
    (root / "test").mkdir(parents=True)
    colours = {"red": [1, 0, 0], "green": [0, 1, 0]}
    members = []
    for k in range(6):
        data = io.BytesIO()
        Image.fromarray(toy.picture([*colours.values()][k % 2])).save(data, "png")
        members += [(f"s{k}.png", data.getvalue()), (f"s{k}.cls", str((k + (k == 5)) % 2).encode())]
    write_tar(root / "test/0.tar", members)
    (root / "classnames.txt").write_text("red\ngreen\n")
    (root / "templates.txt").write_text("a photo of a {c}.\n{c}\n")
    storage = Storage(cache_dir=str(tmp_path / "cache"))
    source = ClipBenchmark(str(root / "test/*.tar"), storage=storage)
    assert len(source) == 6 and source.class_names == ("red", "green") and source[5]["label"] == 0
    prompts = {text: v for name, v in colours.items() for text in (f"a photo of a {name}.", name)}
    evaluator = ZeroShot(source=source, image=toy.IMAGE, text=toy.TEXT, templates=(f"@{root / 'templates.txt'}",))
    result = evaluator(toy.predict(3, prompts), Layout().make(jax.devices()[:1]))
    assert result["top1"] == pytest.approx(5 / 6)
    (root / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"there is no file .*classnames.txt"):
        ClipBenchmark(str(root / "test/*.tar"), storage=storage)


def test_karpathy(tmp_path):
    def image(name, split, **more):
        return {"filename": name, "split": split, "sentences": [{"raw": f"{name} one"}, {"raw": f"{name} two"}], **more}

    png(tmp_path / "val2014/b.jpg")
    entries = [image("a.jpg", "train", filepath="train2014"), image("b.jpg", "test", filepath="val2014")]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries, "dataset": "coco"}))
    source = Karpathy(str(file), str(tmp_path))
    assert len(source) == 1 and source[0]["text"] == ["b.jpg one", "b.jpg two"]
    assert list(source.captions(1)) == ["b.jpg one"]
    with Image.open(io.BytesIO(source[0]["image"])) as opened:
        assert opened.size == (8, 6)
    with pytest.raises(UserError, match="split='dev'"):
        Karpathy(str(file), str(tmp_path), split="dev")
    before = source.fingerprint
    png(tmp_path / "c.jpg")  # Flickr30k has no `filepath`
    file.write_text(json.dumps({"images": [image("c.jpg", "test")]}))
    assert Karpathy(str(file), str(tmp_path)).image_path(0) == f"{tmp_path}/c.jpg"
    assert Karpathy(str(file), str(tmp_path)).fingerprint != before


def test_voc(tmp_path):
    for k, name in enumerate(CLASSES):
        lines = [f"00000{i} {'1' if i == k else '-1' if i + 1 != k else '0'}" for i in range(3)]
        (tmp_path / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"ImageSets/Main/{name}_test.txt").write_text("\n".join(lines).replace(" ", "  ") + "\n")
    for i in range(3):
        png(tmp_path / f"JPEGImages/00000{i}.jpg")
    source = VOC(str(tmp_path), str(tmp_path / "JPEGImages"))
    assert len(source) == 3 and len(source.class_names) == 20
    assert source[1]["labels"][:4].tolist() == [0, 1, -1, 0] and source[1]["labels"].sum() == 0
    (tmp_path / "ImageSets/Main/cat_test.txt").write_text("000000 2\n")
    with pytest.raises(UserError, match=r"cat_test.txt:1 is '000000 2'"):
        VOC(str(tmp_path), str(tmp_path / "JPEGImages"))
    with pytest.raises(UserError, match="there is no file"):
        VOC(str(tmp_path), str(tmp_path / "JPEGImages"), split="val")


def test_metadata(tmp_path):
    for i in range(4):
        png(tmp_path / f"birds/{i}.jpg")
    rows = [
        "img_filename,y,split,place",
        "birds/0.jpg,0,2,0",
        "birds/1.jpg,0,2,1",
        "birds/2.jpg,1,0,1",
        "birds/3.jpg,1,2,1",
    ]
    file = tmp_path / "metadata.csv"
    file.write_text("\n".join(rows) + "\n")
    source = Metadata(str(file), str(tmp_path))
    assert len(source) == 3 and source.group_names == ("y=0 place=0", "y=0 place=1", "y=1 place=1")
    assert [(source[i]["label"], source[i]["group"]) for i in range(3)] == [(0, 0), (0, 1), (1, 2)]
    assert len(Metadata(str(file), str(tmp_path), only=(), group=())) == 4
    with pytest.raises(UserError, match="has no column 'plaice'; did you mean 'place'"):
        Metadata(str(file), str(tmp_path), group=("plaice",))
    with pytest.raises(UserError, match="label '1', where there are 1 classes"):
        Metadata(str(file), str(tmp_path), classes=("bird",))
    with pytest.raises(UserError, match="there is nothing in it for Metadata"):
        Metadata(str(file), str(tmp_path), only=(("split", "7"),))
