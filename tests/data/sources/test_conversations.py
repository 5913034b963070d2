"""Conversations in the ways in which LLaVA, OpenAI and Hugging Face write them."""

from __future__ import annotations

import base64
import json
import pickle
import re
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.numbered import take
from tests.data.sources.tars import png, write_tar
from vlm_jax.data.conversation_images import FixedImages
from vlm_jax.data.conversations import Conversations
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.image import ImageTransform
from vlm_jax.data.pipeline import Pipeline
from vlm_jax.data.sources import text_table
from vlm_jax.data.sources.conversations import Messages
from vlm_jax.data.sources.interleaved import Interleaved
from vlm_jax.data.storage import Storage
from vlm_jax.data.text import Text
from vlm_jax.errors import UserError

# Texts of user and assistant in turn, and numbers of images.
TALKS = [
    (["<image>\nWas ist das?", "Ein “Hund”."], [1]),
    (["a", "b", "c", "d"], []),
    (["<image> <image>", "\\zwei"], [2, 4]),
]


@pytest.fixture
def storage(tmp_path):
    return Storage(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images/coco").mkdir(parents=True)
    for k in range(1, 5):
        (tmp_path / f"images/{name(k)}").write_bytes(png(k))
    return tmp_path / "images"


def name(k: int) -> str:
    return f"coco/{k}.png"


def expected() -> list[tuple[list[dict], list[bytes] | None]]:
    roles = ("user", "assistant") * 2
    return [
        ([{"role": role, "content": text} for role, text in zip(roles, texts)], [png(k) for k in numbers] or None)
        for texts, numbers in TALKS
    ]


def found(source) -> list[tuple]:
    return [(source[k]["messages"], source[k].get("images")) for k in range(len(source))]


def llava() -> list[dict]:
    rows = []
    for k, (texts, numbers) in enumerate(TALKS):
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        rows.append({"id": f"{k:09}", "conversations": turns})
        if numbers:
            rows[-1]["image"] = name(numbers[0]) if len(numbers) == 1 else [name(k) for k in numbers]
    return rows


@pytest.mark.parametrize("form", ["json", "indented.json", "jsonl"])
@pytest.mark.parametrize("where", ["folder", "tars", "bucket"])
def test_llava(tmp_path, storage, images, form, where):
    path = tmp_path / f"mix.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, llava())))
    else:
        path.write_text(json.dumps(llava(), ensure_ascii=False, indent=2 if form == "indented.json" else None))
    at = str(images)
    if where == "tars":
        write_tar(tmp_path / "tars/0.tar", [(name(k), png(k)) for k in range(1, 5)])
        at = f"{tmp_path}/tars/*.tar"
    elif where == "bucket":
        fs, at = fsspec.filesystem("memory"), "memory:///images"
        for k in range(1, 5):
            fs.pipe(f"/images/{name(k)}", png(k))
    source = Messages(str(path), images=at, storage=storage)
    assert found(source) == expected() and source[2]["key"] == f"mix.{form}:2"
    assert found(pickle.loads(pickle.dumps(source))) == expected()
    if where == "bucket":
        fs.rm("/images", recursive=True)


def parts(form: str, texts: list[str], numbers: list[int]) -> list[dict]:
    """Messages whose images are parts of their content."""
    numbers, messages = iter(numbers), []
    for i, text in enumerate(texts):
        content = []
        for k, piece in enumerate(text.split("<image>")):
            if k:
                number = next(numbers)
                uri = f"data:image/png;base64,{base64.b64encode(png(number)).decode()}"
                content.append(
                    {
                        "bare": {"type": "image"},
                        "named": {"type": "image", "image": name(number)},
                        "path": {"type": "image", "path": name(number)},
                        "openai": {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
                        "url": {"type": "image_url", "image_url": uri},
                    }[form]
                )
            content += [{"type": "text", "text": piece}] if piece else []
        messages.append({"role": ("user", "assistant")[i % 2], "content": content if i % 2 == 0 else text})
    return messages


def with_parts() -> list[tuple]:
    return [(parts("bare", texts, numbers), [png(k) for k in numbers] or None) for texts, numbers in TALKS]


@pytest.mark.parametrize("form", ["bare", "named", "path", "openai", "url"])
def test_messages(tmp_path, storage, images, form):
    rows = [{"messages": parts(form, *talk)} for talk in TALKS]
    for row, (_, numbers) in zip(rows, TALKS):
        row |= {"images": [name(k) for k in numbers]} if form == "bare" else {}
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    at = None if form in ("openai", "url") else str(images)
    assert found(Messages(str(tmp_path / "x.jsonl"), images=at, storage=storage)) == with_parts()


@pytest.mark.parametrize("numbered", [False, True])
def test_parquet_as_hugging_face_writes_it(tmp_path, storage, numbered):
    rows = []
    for texts, numbers in TALKS:
        messages, place = parts("bare", texts, numbers), 0
        for message in messages:
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message["content"] = [{"index": None, "text": None, **part} for part in content]
            for part in message["content"]:
                if part["type"] == "image" and numbered:
                    part["index"] = len(numbers) - 1 - place
                    place += 1
        held = [{"bytes": png(k), "path": None} for k in (numbers[::-1] if numbered else numbers)]
        rows.append({"messages": messages, "images": held, "answers": ["x", "y"], "type": None, "more": 1})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    source = Messages(str(tmp_path), storage=storage)
    roles = [[m["role"] for m in messages] for messages, _ in expected()]
    assert [[m["role"] for m in messages] for messages, _ in found(source)] == roles
    assert [images for _, images in found(source)] == [images for _, images in expected()]
    assert source[0]["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "\nWas ist das?"}]
    assert source[1]["answers"] == ["x", "y"] and "type" not in source[1] and source[2]["key"] == "x.parquet:2"
    assert list(source.captions()) == ["\nWas ist das?", "Ein “Hund”.", "a", "b", "c", "d", "\\zwei"]


def test_captions_are_the_texts_of_all_turns(tmp_path, storage, images):
    (tmp_path / "x.json").write_text(json.dumps(llava()))
    source = Messages(str(tmp_path / "x.json"), images=str(images), storage=storage)
    texts = ["\nWas ist das?", "Ein “Hund”.", "a", "b", "c", "d", "\\zwei"]
    assert list(source.captions()) == texts and list(source.captions(2)) == texts[:2]


def test_skip_limit_and_what_is_told_apart(tmp_path, storage, images):
    rows = [{**row, "type": "t", "answers": "x"} for row in llava()]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    options = dict(images=str(images), storage=storage)
    source = Messages(str(tmp_path / "x.json"), skip=1, limit=1, **options)
    assert found(source) == expected()[1:2] and source[0]["type"] == "t" and source[0]["answers"] == ["x"]
    whole = Messages(str(tmp_path / "x.json"), **options)
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    moved = Messages(str(tmp_path.parent / "moved/x.json"), **options)
    assert moved.fingerprint == whole.fingerprint != source.fingerprint
    with pytest.raises(IndexError):
        source[1]


def test_a_list_is_indexed_once(tmp_path, storage, images, monkeypatch):
    (tmp_path / "x.json").write_text(json.dumps(llava()))
    Messages(str(tmp_path / "x.json"), images=str(images), storage=storage)
    monkeypatch.setattr(text_table, "make_row_index", lambda *_, **__: pytest.fail("indexed again"))
    assert found(Messages(str(tmp_path / "x.json"), images=str(images), storage=storage)) == expected()


@pytest.mark.parametrize(
    "text, count", [("[]", 0), (" [ ]\n", 0), ('\ufeff[{"messages": []}]', 1), ("[1,\n2 , {}]\n", 3)]
)
def test_lists_in_json(tmp_path, storage, text, count):
    (tmp_path / "x.json").write_text(text)
    rows = text_table.TextTable(str(tmp_path / "x.json"), storage, None, (".json",))
    assert len(rows) == count


@pytest.mark.parametrize(
    "row, why",
    [
        ({"messages": []}, "it has no turns in messages or conversations"),
        ({"messages": "hello"}, "it has no turns"),
        ({"messages": ["hello"]}, "turn 1 is 'hello', wanted are role and content"),
        ({"messages": [{"role": "user", "content": "<image>"}], "image": "0.png"}, "there is no image 0.png"),
        ({"messages": [{"role": "user", "content": "<image>"}], "image": 7}, "an image is '7', wanted are its bytes"),
        ({"messages": [{"role": "user", "content": "<image>"}], "image": "data:image/png;base64,?"}, "is no base64"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a"}]}], "images": ["b"]},
            "it has images in its turns and beside them",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "index": 1}]}], "images": ["b"]},
            "its turns ask for the images [1], and it has 1",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "answers": [1]}, "answers is '[1]', wanted is a string"),
    ],
)
def test_broken_rows(tmp_path, storage, images, row, why):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    source = Messages(str(tmp_path / "x.jsonl"), images=str(images), storage=storage)
    with pytest.raises(UnreadableRecord, match=re.escape(why)) as error:
        source[0]
    assert error.value.key == "x.jsonl:0"


@pytest.mark.parametrize(
    "name, text, options, message",
    [
        ("x.jsonl", '{"mesages": []}', {}, "has no column 'messages' or 'conversations': did you mean 'mesages'?"),
        ("x.json", '{"messages": []}', {}, "x.json is not a list in JSON: '[' should stand at byte 0"),
        ("x.json", '[{"messages": []} {', {}, "is not a list in JSON: ',' or ']' should stand at byte 18"),
        ("x.json", '[{"messages"}]', {}, "is not a list in JSON: Expecting ':'"),
        ("x.json", "[]", {}, "has 0 conversations, none is left after skip=0"),
        ("x.jsonl", "[1]", {}, "x.jsonl: the row is '[1]', wanted is a JSON object"),
        ("x.json", json.dumps(llava()), {}, "names its images (coco/1.png) and does not hold them"),
        ("x.json", json.dumps(llava()), {"images": "nowhere/*.tar"}, "no file matches"),
        ("x.json", json.dumps(llava()), {"limit": 0}, "limit >= 1"),
    ],
)
def test_mistakes_are_named(tmp_path, storage, name, text, options, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        Messages(str(tmp_path / name), storage=storage, **options)
    assert message in str(error.value)


def test_other_sources_of_tables_take_no_lists(tmp_path, storage):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError):
        Interleaved(str(tmp_path / "x.json"), storage=storage)


def test_as_batches_with_what_is_wrong_replaced_and_named(tmp_path, storage, images):
    rows = llava()
    rows[1]["image"] = name(3)  # which no turn has a place for
    (tmp_path / "x.json").write_text(json.dumps(rows))
    source = Messages(str(tmp_path / "x.json"), images=str(images), storage=storage)
    conversations = Conversations(images=FixedImages(count=2, tokens=2))
    text = Text(length=40, canonicalise="none", pad="pad")
    pipeline = Pipeline(source, ImageTransform(size=4), text, conversations=conversations, shuffle=False, threads=0)
    batch, state = take(pipeline, 1, batch_size=3)
    assert batch["image"][:, :, 0, 0, 0].tolist() == [[1, 0], [2, 4], [2, 4]]
    assert state["unreadable_first"] == [["x.json:1", "it has 1 images and 0 places (<image>) for them"]]
