"""VQGANs by taming-transformers' names: Chameleon's codes are transformers', and the decoder that of its source."""

import jax
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.interop import taming
from vlm_jax.interop.tensors import Tensors
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.bottlenecks.vq import VectorQuantiser
from vlm_jax.models.codecs import VitDecoder, VitEncoder, VqganDecoder, VqganEncoder

from ..parity import peers

NETWORK = dict(dim=6, widths=(32, 64), blocks=1, attention=(1,), dtype="float32")
MODEL = Autoencoder(VqganEncoder(**NETWORK), VectorQuantiser(size=9, dim=5), VqganDecoder(**NETWORK), image_size=16)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return Tensors("model.ckpt", {name: value.shape for name, value in arrays.items()}, arrays.__getitem__)


def variables():
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(draw, jax.eval_shape(MODEL.init, jax.random.key(0)))


def test_codes_of_chameleon():
    """Of transformers' model, which has no decoder."""
    torch = peers.torch()
    peers.transformers()
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    sizes = dict(latent_channels=6, base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[8])
    config = ChameleonVQVAEConfig(**sizes, resolution=16, embed_dim=5, num_embeddings=9)
    torch.manual_seed(0)
    theirs = ChameleonVQVAE(config).eval()
    pixels = torch.tensor(2 * (IMAGES / np.float32(255)).transpose(0, 3, 1, 2) - 1)
    with torch.no_grad():  # codes that are features of images, so that all are used
        features = theirs.quant_conv(theirs.encoder(pixels)).permute(0, 2, 3, 1).reshape(-1, 5)
        theirs.quantize.embedding.weight.copy_(features[:: len(features) // 9][:9])
        expected = theirs.encode(pixels)
    ours = taming.read(MODEL, tensors({name: value.numpy() for name, value in theirs.state_dict().items()}))
    assert ours["params"].keys() == {"encoder", "bottleneck"}
    codes = jax.jit(MODEL.encode_tokens)(ours, IMAGES)
    assert len(np.unique(codes)) == 9
    np.testing.assert_array_equal(codes.ravel(), expected.image_tokens.numpy().ravel())


def decoded(arrays, codes):
    """What taming's decoder makes of codes, in [-1, 1], from arrays by its names."""
    torch = peers.torch()
    f = torch.nn.functional
    get = lambda name: torch.tensor(arrays[name])
    both = lambda name: (get(f"{name}.weight"), get(f"{name}.bias"))
    conv = lambda x, name: f.conv2d(x, *both(name), padding=arrays[f"{name}.weight"].shape[-1] // 2)
    norm = lambda x, name: f.group_norm(x, 32, *both(name), eps=1e-6)

    def block(x, name):
        h = conv(f.silu(norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = conv(f.silu(norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in arrays else x)

    def attention(x, name):
        h = norm(x, f"{name}.norm")
        q, k, v = (conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5).softmax(-1)
        return x + conv(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape), f"{name}.proj_out")

    z = get("quantize.embedding.weight")[torch.tensor(np.array(codes)).long()].permute(0, 3, 1, 2)
    x = conv(conv(z, "post_quant_conv"), "decoder.conv_in")
    x = block(attention(block(x, "decoder.mid.block_1"), "decoder.mid.attn_1"), "decoder.mid.block_2")
    for level in (1, 0):
        for i in (0, 1):
            x = block(x, f"decoder.up.{level}.block.{i}")
            x = attention(x, f"decoder.up.{level}.attn.{i}") if level == 1 else x
        if level:
            x = conv(f.interpolate(x, scale_factor=2), f"decoder.up.{level}.upsample.conv")
    return conv(f.silu(norm(x, "decoder.norm_out")), "decoder.conv_out").permute(0, 2, 3, 1).numpy()


def test_what_is_written_decodes_there_as_here():
    ours = variables()
    codes = np.random.default_rng(2).integers(0, 9, (2, 3, 4))
    expected = decoded(taming.write(MODEL, ours), codes)
    found = jax.jit(MODEL.decode_tokens)(ours, codes)
    np.testing.assert_allclose(2 * np.asarray(found) - 1, expected, atol=1e-4 * np.abs(expected).max())


def test_there_and_back():
    ours = variables()
    arrays = taming.write(MODEL, ours)
    names = {"encoder.down.0.downsample.conv.weight", "encoder.down.1.attn.0.proj_out.bias", "quant_conv.weight"}
    assert names < arrays.keys() and arrays["quant_conv.weight"].shape == (5, 6, 1, 1)
    again = taming.read(MODEL, tensors({**arrays, "loss.discriminator.main.0.weight": np.zeros(3)}))
    assert jax.tree.structure(again) == jax.tree.structure(ours)
    ours["state"] |= {name: again["state"][name] for name in ("count", "sum", "started")}  # of training alone
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), again, ours)


def test_what_does_not_fit():
    arrays = taming.write(MODEL, variables())
    small = {**arrays, "quantize.embedding.weight": np.zeros((8, 5))}
    with pytest.raises(UserError, match=r"quantize.embedding.weight is \[8, 5\], the model's is \[9, 5\]"):
        taming.read(MODEL, tensors(small))
    arrays["decoder.up.1.attn.9.q.weight"] = arrays.pop("decoder.up.1.attn.1.q.weight")
    with pytest.raises(UserError, match=r"decoder.up.1.attn.1.q.weight"):
        taming.read(MODEL, tensors(arrays))
    sizes = dict(width=16, depth=1, num_heads=2, patch_size=8, image_size=16)
    vit = Autoencoder(VitEncoder(**sizes), VectorQuantiser(), VitDecoder(**sizes), image_size=16)
    with pytest.raises(UserError, match="this model's encoder is VitEncoder"):
        taming.read(vit, tensors(arrays))
