"""Of SigLIP 2 as it is trained, other libraries get the towers, which are SigLIP's."""

import numpy as np

from vlm_jax import config as configs
from vlm_jax import interop, tree
from vlm_jax.data.image import ImageTransform
from vlm_jax.interop import writing

from ..nn.random_parameters import random_parameters
from ..tasks.test_siglip2 import MODEL


def test_towers_are_written_and_read_back(tmp_path):
    params, half = random_parameters(MODEL)["params"], (0.5,) * 3
    folder = writing.to_hugging_face(MODEL, params, ImageTransform(size=8), None, half, half)
    writing.save(folder, tmp_path / "siglip")
    found = interop.source(tmp_path / "siglip")
    again = tree.flatten(found.params())
    wanted = tree.flatten({name: params[name] for name in ("image", "text", "logit_scale", "logit_bias")})
    assert found.family == "siglip" and again.keys() == wanted.keys()
    for name, leaf in again.items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)
    assert configs.build(found.model).image.geometry == MODEL.image.geometry
