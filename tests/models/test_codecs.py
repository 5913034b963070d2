"""Encoders and decoders: the published networks by names, shapes and numbers; sizes and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import tree
from vlm_jax.errors import UserError
from vlm_jax.models.codecs import (
    DalleDecoder,
    DalleEncoder,
    PatchDecoder,
    PatchEncoder,
    VitDecoder,
    VitEncoder,
    VqganDecoder,
    VqganEncoder,
)

from ..parity import peers

GROUPS, BLOCKS = 4, 2


def shapes(network):
    leaves = tree.flatten(jax.eval_shape(network.init, jax.random.key(0)))
    return {name: leaf.shape for name, leaf in leaves.items()}


def published(widths: list[tuple[int, int]], sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the blocks of one of DALL-E's networks, by its own names (`group_1.block_1.res_path.conv_1.w`, which
    torch has as [out, in, size, size]); `widths` are those before and after each group."""
    found = {}
    for group, (before, after) in enumerate(widths, start=1):
        for block in range(1, BLOCKS + 1):
            name, first = f"group_{group}.block_{block}", before if block == 1 else after
            if first != after:
                found[f"{name}.id_path"] = (after, first, 1, 1)
            hidden = [first, after // 4, after // 4, after // 4, after]
            for i, size in enumerate(sizes):
                found[f"{name}.res_path.conv_{i + 1}"] = (hidden[i + 1], hidden[i], size, size)
    return found


def named_as_published(network) -> dict[str, tuple[int, ...]]:
    kernels = {name: shape for name, shape in shapes(network).items() if name.endswith("/kernel")}
    biases = {name: shape for name, shape in shapes(network).items() if name.endswith("/bias")}
    assert {name.removesuffix("/bias") for name in biases} == {name.removesuffix("/kernel") for name in kernels}
    return {
        name.removesuffix("/kernel").replace("/", "."): (outs, ins, rows, cols)
        for name, (rows, cols, ins, outs) in kernels.items()
    }


def test_the_encoder_of_dalle():
    wanted = published([(256, 256), (256, 512), (512, 1024), (1024, 2048)], (3, 3, 3, 1))
    assert named_as_published(DalleEncoder()) == wanted | {"input": (256, 3, 7, 7)}
    assert DalleEncoder().dim == 2048 and DalleEncoder().stride == 8


def test_the_decoder_of_dalle():
    wanted = published([(128, 2048), (2048, 1024), (1024, 512), (512, 256)], (1, 3, 3, 3))
    assert named_as_published(DalleDecoder()) == wanted | {"output": (6, 256, 1, 1)}


def test_a_block_of_dalle_adds_little_to_begin_with():
    """The branch's gain is 1 / 64 for eight blocks (arXiv:2102.12092, appendix A.1)."""
    from vlm_jax.nn import dalle
    from vlm_jax.nn.functional import Functional

    block = Functional(dalle.Block, 8, 8, (3, 3, 3, 1), 1 / 64, dtype="float32")
    params = block.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 8))
    h = x
    for i in range(4):
        kernel = params["res_path"][f"conv_{i + 1}"]["kernel"]
        h = jax.lax.conv_general_dilated(
            jax.nn.relu(h), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    np.testing.assert_allclose(block(params, x), x + h / 64, atol=1e-6)


VQGAN = dict(dim=8, widths=(8, 16, 16), blocks=1, attention=(2,), groups=4, dtype="float32")
PAIRS = [
    (DalleEncoder(hidden=4, blocks=1, dtype="float32"), DalleDecoder(dim=8, hidden=4, blocks=1, dtype="float32")),
    (VqganEncoder(**VQGAN), VqganDecoder(**VQGAN)),
    (PatchEncoder(width=8, patch_size=8, dtype="float32"), PatchDecoder(width=8, patch_size=8, dtype="float32")),
    (
        VitEncoder(width=16, depth=1, num_heads=2, patch_size=8, image_size=16, dtype="float32"),
        VitDecoder(width=16, depth=1, num_heads=2, patch_size=8, image_size=16, dtype="float32"),
    ),
]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=["dalle", "vqgan", "patch", "vit"])
def test_there_and_back(encoder, decoder):
    image = jax.random.uniform(jax.random.key(0), (2, 16, 32, 3))
    features = jax.jit(encoder.apply)(encoder.init(jax.random.key(1)), image)
    assert features.shape == (2, 16 // encoder.stride, 32 // encoder.stride, encoder.dim)
    latents = jnp.ones((*features.shape[:3], decoder.dim))
    out = jax.jit(decoder.apply)(decoder.init(jax.random.key(2)), latents)
    assert out.shape == (2, 16, 32, decoder.channels) and out.dtype == jnp.float32


def test_the_encoder_of_chameleon(tmp_path):
    """VQGAN's encoder of transformers' Chameleon, by its own parameters, in f32."""
    torch = peers.torch()
    peers.transformers()
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEEncoder

    config = ChameleonVQVAEConfig(
        double_latent=False,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=2,
        attn_resolutions=[8],
        resolution=32,
    )
    theirs = ChameleonVQVAEEncoder(config).eval()
    ours = VqganEncoder(dim=8, widths=(32, 32, 64), blocks=2, attention=(2,), dtype="float32")
    params = {}
    for name, value in theirs.state_dict().items():
        *path, leaf = name.split(".")
        path = "/".join(path).replace("nin_shortcut", "shortcut").replace("proj_out", "out")
        for level in range(3):
            path = path.replace(f"down/{level}/downsample/conv", f"downsample_{level}")
            path = path.replace(f"down/{level}/block/", f"down_{level}/block_")
            path = path.replace(f"down/{level}/attn/", f"down_{level}/attn_")
        value = value.numpy()
        if leaf == "weight" and value.ndim == 4:
            params[f"{path}/kernel"] = value.transpose(2, 3, 1, 0)
        else:
            params[f"{path}/{'scale' if leaf == 'weight' else leaf}"] = value
    assert {name: value.shape for name, value in params.items()} == shapes(ours)
    image = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(image.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    found = jax.jit(ours.apply)(tree.unflatten(params), image)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-5)


def test_convolutions_among_patches_start_linear():
    """With matrices that are inverse to one another an image comes back; and each patch in its place."""
    sizes = dict(width=12, blocks=2, patch_size=2, dtype="float32")
    encoder, decoder = PatchEncoder(**sizes), PatchDecoder(**sizes)
    there, back = encoder.init(jax.random.key(0)), decoder.init(jax.random.key(1))
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0].astype(np.float32)
    there["patch"] = {"kernel": jnp.asarray(matrix).reshape(2, 2, 3, 12), "bias": jnp.zeros(12)}
    assert (back["head"]["bias"] == 0.5).all()
    back["head"] = {"kernel": jnp.asarray(matrix.T), "bias": jnp.zeros(12)}
    image = jax.random.uniform(jax.random.key(2), (2, 6, 4, 3))
    np.testing.assert_allclose(decoder.apply(back, encoder.apply(there, image)), image, atol=1e-5)


def test_what_does_not_fit():
    with pytest.raises(UserError, match=r"widths=\(8, 12\) must be divisible by groups=8"):
        VqganEncoder(widths=(8, 12), groups=8, attention=())
    with pytest.raises(UserError, match=r"attention=\(3,\): there is no size 3 among 2 widths"):
        VqganDecoder(widths=(8, 8), groups=8, attention=(3,))
    with pytest.raises(UserError, match="hidden=0 must be at least 1"):
        DalleEncoder(hidden=0)
    with pytest.raises(UserError, match="image_size=30 is not divisible by patch_size=8"):
        VitEncoder(width=16, num_heads=2, image_size=30)
