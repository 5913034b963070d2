"""Files and flags that are damaged, or made up: only the errors that are documented."""

import copy
import functools
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.sources.tars import sample, write_tar
from vlm_jax import config as configs
from vlm_jax.checkpoint.folder import Damaged, read_meta, seal
from vlm_jax.data import tokenizers
from vlm_jax.data.errors import UnreadableRecord
from vlm_jax.data.sources.parquet import Parquet
from vlm_jax.data.sources.tar_headers import DamagedTar, members
from vlm_jax.data.sources.webdataset import WebDataset
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError
from vlm_jax.overrides import apply_bind, override_all

SETTINGS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def fuzzed(few: int, **given_by: st.SearchStrategy):
    """A test that is called with `few` made-up inputs; with 10,000 in the whole count."""

    def decorate(check):
        @pytest.mark.parametrize("count", [few, pytest.param(10_000, marks=pytest.mark.full)])
        def test(count, tmp_path):
            keys()  # loads a recipe, which nothing that is drawn should do

            @settings(max_examples=count, **SETTINGS)
            @given(st.fixed_dictionaries(given_by))
            def run(drawn):
                check(tmp_path, **drawn)

            run()

        return test

    return decorate


# Values that make parsers do what was not meant, and anything else.
nasty = st.sampled_from(
    ["None", "true", "-1", "1e400", "nan", "9" * 5000, "[1,2", "{}", "(" * 500, "[" * 500, "\x00", "a=b", "é\ud800", ""]
    + ["__import__('os').system('x')", "os.system", "models.vit.ViT", "late('x')", "{1: 2}", "1j", "b'x'", "...", "-"]
)
texts = nasty | st.text(max_size=30) | st.integers().map(str) | st.floats().map(str)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@functools.cache
def recipe():
    return configs.load("siglip_tiny")


@functools.cache
def keys() -> list[str]:
    return [line.split(" = ")[0] for line in configs.lines(configs.fill(recipe()))]


def used(config) -> None:
    """What is done with a config before anything is built."""
    configs.check(config)
    configs.lines(configs.fill(config))
    configs.from_json(configs.to_json(config), "config.json")


@st.composite
def override(draw) -> tuple[str, str]:
    key = draw(st.sampled_from(keys()))
    if draw(st.integers(0, 3)) == 0:
        key = draw(st.sampled_from([f"{key}.x", key[:-1], key.rpartition(".")[0], f".{key}", f"{key}."]))
    return key, draw(texts)


@fuzzed(200, changes=st.lists(override(), min_size=1, max_size=3))
def test_overrides(tmp_path, changes):
    config = copy.deepcopy(recipe())
    try:
        override_all(config, changes)
        used(config)
    except UserError as error:
        assert "\n" not in str(error)


@fuzzed(
    100,
    text=st.tuples(st.sampled_from(["ViT", "Shapes", "Adam", "", "x.y"]), texts, texts).map(
        "{0[0]}.{0[1]}={0[2]}".format
    )
    | texts,
)
def test_bindings(tmp_path, text):
    config = copy.deepcopy(recipe())
    try:
        apply_bind(config, text)
        used(config)
    except UserError:
        pass


@st.composite
def trees(draw, whole):
    """A JSON value with one part of it replaced by another one."""
    value = copy.deepcopy(whole())
    node, choice = value, None
    for _ in range(draw(st.integers(1, 5))):
        inner = node if choice is None else node[choice]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        node = inner
        choice = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    if draw(st.booleans()):
        node[choice] = draw(json_values | texts)
    else:
        del node[choice]
    return value


@functools.cache
def plain_recipe() -> dict:
    return json.loads(configs.to_json(recipe()))


@fuzzed(150, value=trees(plain_recipe) | json_values)
def test_configs_of_workdirs(tmp_path, value):
    try:
        used(configs.from_json(json.dumps(value), "config.json"))
    except UserError:
        pass


META = {
    "format": 1,
    "step": 3,
    "config": {"name": "x"},
    "arrays": {"params/x": "float32[2]"},
    "fingerprints": {"params/x": "0" * 16},
}


def meta_of(folder: Path, content: bytes) -> None:
    (folder / "3" / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "3" / "meta" / "metadata").write_bytes(content)
    try:
        found = read_meta(folder / "3")
    except (Damaged, UserError):
        return
    assert found["step"] == 3 and isinstance(found["arrays"], dict) and isinstance(found["fingerprints"], dict)


@fuzzed(300, value=trees(lambda: META) | json_values.filter(lambda value: isinstance(value, dict)))
def test_meta_that_is_sealed(tmp_path, value):
    meta_of(tmp_path, json.dumps(seal(value)).encode())


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The bytes with some of them changed, cut off, doubled or put in."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        length = draw(st.integers(1, 600))
        what = draw(st.sampled_from(["flip", "bytes", "cut", "delete", "repeat", "zeros", "digits"]))
        if what == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "bytes":
            raw[at : at + 8] = draw(st.binary(max_size=8))
        elif what == "cut":
            del raw[at:]
        elif what == "delete":
            del raw[at : at + length]
        elif what == "repeat":
            raw[at:at] = raw[at : at + length]
        elif what == "zeros":
            raw[at : at + length] = bytes(length)
        else:
            raw[at : at + 8] = draw(st.sampled_from([b"77777777", b"99999999", b"-1      ", b"\xff" * 8]))
    return bytes(raw)


@fuzzed(300, content=damaged(json.dumps(seal(META)).encode()))
def test_meta_that_is_damaged(tmp_path, content):
    meta_of(tmp_path, content)


@functools.cache
def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in [member for k in range(3) for member in sample(k)] + [("é" * 120 + ".txt", b"long")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()[:-8192]  # of the zeros after the end


@fuzzed(300, content=damaged(tar()))
def test_tar_headers(tmp_path, content):
    try:
        found = list(members(lambda at, size: content[at : at + size], len(content)))
    except DamagedTar:
        return
    assert all(0 <= at <= at + size <= len(content) for _, at, size in found)


@fuzzed(60, content=damaged(tar()))
def test_tars(tmp_path, content):
    """What is whole in a damaged tar is read; nothing is written but the index."""
    for old in tmp_path.iterdir():
        old.unlink()
    (tmp_path / "x.tar").write_bytes(content)
    options = {"image": ("png",), "text": ("txt",), "damaged": "skip", "index": "beside", "storage": Storage(tries=1)}
    try:
        source = WebDataset(str(tmp_path / "x.tar"), **options)
        for k in range(len(source)):
            try:
                source[k]
            except UnreadableRecord:
                pass
    except UserError:
        pass
    assert {path.suffix for path in tmp_path.iterdir()} <= {".tar", ".index"}


@functools.cache
def parquet() -> bytes:
    file = io.BytesIO()
    rows = {"image": [b"x" * 50, b"y", None, b"z"], "text": ["a", "b", None, "d" * 40], "label": [0, 1, 2, 9]}
    pq.write_table(pa.table(rows), file, row_group_size=2, write_page_checksum=True)
    return file.getvalue()


@fuzzed(150, content=damaged(parquet()))
def test_parquet(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    try:
        source = Parquet(str(tmp_path / "x.parquet"), text_column="text", storage=Storage(tries=1))
    except UserError:
        return
    for k in range(len(source)):
        try:
            source[k]
        except (UnreadableRecord, OSError):  # a damaged row group ends a run: it holds thousands of rows
            pass


@functools.cache
def tokenizer_files() -> dict[str, bytes]:
    """A file of each kind that can be read."""
    words = "a small red circle above the large blue square " * 3
    files = {"x.model": tokenizers.train(words.split(), 60)}
    vocab = {**{chr(c): c for c in range(33, 127)}, "a</w>": 1, "<|startoftext|>": 200, "<|endoftext|>": 201}
    merges = [["a", "b</w>"]]
    clip = {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "end_of_word_suffix": "</w>"},
        "added_tokens": [{"id": 201, "content": "<|endoftext|>", "special": True}],
    }
    files["tokenizer.json"] = json.dumps(clip).encode()
    plain = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    added = {"id": 1, "content": "<unk>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    described = {"version": "1.0", "added_tokens": [{**added, "normalized": False}], "model": plain}
    files["plain/tokenizer.json"] = json.dumps(described).encode()
    return files


@st.composite
def tokenizer(draw) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(tokenizer_files())))
    content = tokenizer_files()[name]
    if name.endswith(".json") and draw(st.booleans()):
        return name, json.dumps(draw(trees(lambda: json.loads(content)))).encode()
    return name, draw(damaged(content))


@fuzzed(200, file=tokenizer())
def test_tokenizers(tmp_path, file):
    name, content = file
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    tokenizers.load.cache_clear()
    try:
        found = tokenizers.load(str(tmp_path / name))
    except UserError:
        return
    ids = found.encode("a red circle")
    assert all(isinstance(i, int) for i in ids) and isinstance(found.decode(ids), str)


def test_a_tar_s_names_lead_nowhere(tmp_path):
    """Members are read where they lie, and never written under their names."""
    escaping = [("../../evil.png", b"x"), ("/abs/evil.txt", b"x"), ("../../evil.txt", b"caption")]
    path = write_tar(tmp_path / "in" / "x.tar", escaping)
    source = WebDataset(str(path), index="beside", damaged="skip")
    assert len(source) == 2
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(written) == 2 and all(name.startswith("in/x.tar") for name in written)


@pytest.mark.parametrize("name", ["x.npz", "x.bin"])
def test_weights_run_no_code(tmp_path, name):
    """An array of objects, and a pickle that calls: both are refused, and nothing is called."""
    from vlm_jax.interop.tensors import open_tensors

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "called").touch, ())

    if name == "x.npz":
        np.savez(tmp_path / name, a=np.array([Evil()], dtype=object))
    else:
        import pickle
        import zipfile

        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(UserError):
        open_tensors(tmp_path / name).read("a")
    assert not (tmp_path / "called").exists()
