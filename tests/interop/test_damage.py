"""Files that are damaged, malicious or of another model: one line each, and nothing is loaded."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vlm_jax import config as configs
from vlm_jax import interop
from vlm_jax.errors import UserError
from vlm_jax.interop import hugging_face, imported, table, tensors

from ..parity import peers

SIGLIP = {
    "model_type": "siglip",
    "text_config": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"vocab_size": 10, "max_position_embeddings": 4},
    "vision_config": {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"image_size": 16, "patch_size": 8},
}


def vision(**changes):
    return SIGLIP | {"vision_config": SIGLIP["vision_config"] | changes}


def siglip_arrays():
    family = hugging_face.FAMILIES["siglip"]
    node = imported.complete(family.model(SIGLIP, "test"))
    shapes = table.wanted(family.table(node), imported.template(configs.build(node)))
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """A SigLIP of a few hundred numbers."""
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP))
    save_file(siglip_arrays(), tmp_path / "model.safetensors")
    return tmp_path


def refused(path):
    with pytest.raises(UserError) as raised:
        interop.source(path).params()
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_folder_is_good(folder):
    params = interop.source(folder).params()
    assert params["image"]["blocks"]["00"]["attn"]["qkv"]["kernel"].shape == (8, 24)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_f32_exactly(folder, dtype):
    half = {name: array.astype(dtype) for name, array in siglip_arrays().items()}
    save_file(half, folder / "model.safetensors")
    leaf = interop.source(folder).params()["text"]["embed"]["token"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, half["text_model.embeddings.token_embedding.weight"].astype(np.float32))


@pytest.mark.parametrize("keep", [0, 7, 200, -5])
def test_truncated_safetensors(folder, keep):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    assert "is damaged or no safetensors file" in refused(folder)


def change(folder, **arrays):
    held = load_file(folder / "model.safetensors")
    for name, array in arrays.items():
        held.pop(name) if array is None else held.update({name: array})
    save_file(held, folder / "model.safetensors")


def test_every_tensor_is_accounted_for(folder):
    head = "vision_model.head"
    change(folder, **{f"{head}.probe": None, "logit_bias": np.zeros(2, np.float32), "extra": np.zeros(1, np.float32)})
    assert refused(folder) == (
        f"{folder}/model.safetensors does not fit the model that its config describes: missing: {head}.probe; "
        "of another shape: logit_bias [2] where [1] is wanted; unused: extra."
    )


def test_a_long_list_is_cut(folder):
    change(folder, **{f"extra{i}": np.zeros(1, np.float32) for i in range(9)})
    assert refused(folder).endswith("unused: extra0, extra1, extra2, extra3, extra4 and 4 more.")


def test_buffers_of_old_versions_are_no_parameters(folder):
    change(folder, **{"text_model.embeddings.position_ids": np.zeros((1, 4), np.int64)})
    interop.source(folder).params()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SIGLIP | {"model_type": "clip"}, "does not fit the model that its config describes: missing: "),
        (SIGLIP | {"model_type": "bert"}, "no model of type 'bert' is known here"),
        (vision(intermediate_size=16), "of another shape"),
        (vision(num_hidden_layers=2), "missing: vision_model.encoder"),
        (vision(hidden_act="silu"), "hidden_act='silu' is not supported"),
        (vision(num_attention_heads=3), "its config describes no model"),
        (vision(vision_use_head=False), "vision_use_head=False is not"),
        (SIGLIP | {"text_config": SIGLIP["text_config"] | {"projection_size": 6}}, "outputs differ in width"),
    ],
)  # fmt: skip
def test_another_config(folder, config, says):
    (folder / "config.json").write_text(json.dumps(config))
    assert says in refused(folder)


def test_files_that_are_not_there(folder):
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json\.$"):
        interop.read(folder)
    (folder / "config.json").write_text("{")
    assert "is no JSON" in refused(folder)
    (folder / "config.json").unlink()
    assert "is no folder of a model" in refused(folder)
    assert refused(folder / "absent").endswith("absent: no such file or folder.")
    (folder / "config.json").write_text(json.dumps(SIGLIP))
    (folder / "model.safetensors").unlink()
    assert "has no weights: wanted is model.safetensors, " in refused(folder)


def test_parts(folder):
    arrays = siglip_arrays()
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": dict(list(arrays.items())[::2]), "b.safetensors": dict(list(arrays.items())[1::2])}
    for name, part in halves.items():
        save_file(part, folder / name)
    index = {tensor: name for name, part in halves.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    token = interop.source(folder).params()["text"]["embed"]["token"]
    np.testing.assert_array_equal(token, arrays["text_model.embeddings.token_embedding.weight"])
    (folder / "b.safetensors").unlink()
    assert refused(folder).endswith("lists 2 files of which b.safetensors is not there.")


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_pickle(path, value, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        for name, content in extra:
            archive.writestr(name, content)


def test_a_pickle_with_code_is_refused_before_it_runs(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    target = tmp_path / "touched"
    for function, arguments in ((open, (str(target), "w")), (exec, (f"open({str(target)!r}, 'w')",))):
        write_pickle(folder / "pytorch_model.bin", {"weight": Malicious(function, *arguments)})
        message = refused(folder)
        assert "it asks for " in message and message.endswith("only tensors are ever unpickled.")
        assert not target.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged"),
        (b"not a zip", "is damaged, or was written by torch before 1.6"),
        ({"a": 1}, "a is no tensor"),
        ([1, 2], "it holds a list, wanted is a dict of tensors"),
        ({}, "it is empty"),
    ],
)
def test_a_pickle_of_something_else(folder, content, says):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(content) if isinstance(content, bytes) else write_pickle(path, content)
    assert says in refused(folder)


def test_pickles_of_torch(tmp_path):
    """Every type, views with offsets and strides, one storage twice, scalars, empty ones; nested in a checkpoint."""
    torch = peers.torch()
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": base,
        "transposed": base.T,
        "inner": base[1:3, 2::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "bfloat16": base.to(torch.bfloat16),
        "half": base.half(),
        "double": base.double(),
        "long": base.long(),
        "bool": base > 3,
        "parameter": torch.nn.Parameter(base),
    }
    for saved in (state, {"state_dict": state, "epoch": 3}, torch.nn.Linear(2, 3).state_dict()):
        torch.save(saved, tmp_path / "x.bin")
        read = tensors.open_tensors(tmp_path / "x.bin")
        expected = saved.get("state_dict", saved)
        assert set(read.shapes) == set(expected)
        for name, value in expected.items():
            assert read.shapes[name] == tuple(value.shape)
            np.testing.assert_array_equal(read.read(name), value.detach().float().numpy())


def test_a_truncated_pickle_of_torch(tmp_path):
    torch = peers.torch()
    torch.save({"a": torch.zeros(100)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "x.bin").write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"x\.bin is damaged"):
            tensors.open_tensors(tmp_path / "x.bin")


def test_a_truncated_npz(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(100))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged or no"):
        interop.read(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="is no ViT and no SigLIP of big_vision"):
        interop.read(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="is no ViT and no SigLIP of big_vision: it lacks"):
        interop.read(tmp_path / "z.npz")
