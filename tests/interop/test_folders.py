"""Which folder is whose."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlm_jax import interop

from .test_damage import SIGLIP, siglip_arrays


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP))
    save_file(siglip_arrays(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_file_of_weights_stands_for_its_folder(folder):
    assert interop.is_foreign(folder / "model.safetensors")
    params = interop.source(folder / "model.safetensors").params()
    assert params["image"]["embed"]["posemb"].shape == (4, 8)


def test_a_folder_with_the_files_of_two_libraries(folder):
    """Weights of each have names of their own: the config that is read is that of the weights."""
    save_file({"visual.proj": np.zeros(1, np.float32)}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text("{}")
    assert interop.source(folder).family == "siglip"
    interop.source(folder).params()


def test_what_is_ours_is_not_foreign(tmp_path):
    assert not interop.is_foreign(tmp_path)
    (tmp_path / "config.json").write_text('{"_target": "experiment.Experiment"}')
    assert not interop.is_foreign(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert interop.is_foreign(tmp_path)  # an export, which `read` reads
    assert interop.is_foreign("hf:org/name") and interop.is_foreign("weights.npz")
