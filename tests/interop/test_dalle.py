"""DALL-E's networks by their published names: codes and pixels are those of a plain version of them in torch."""

import jax
import numpy as np
import pytest

from vlm_jax.errors import UserError
from vlm_jax.interop import dalle
from vlm_jax.interop.tensors import Tensors
from vlm_jax.models.autoencoder import Autoencoder
from vlm_jax.models.bottlenecks.gumbel import Gumbel
from vlm_jax.models.bottlenecks.scalar import FSQ
from vlm_jax.models.codecs import DalleDecoder, DalleEncoder

from ..parity import peers

SIZES = dict(hidden=4, blocks=1, dtype="float32")
MODEL = Autoencoder(DalleEncoder(**SIZES), Gumbel(size=7), DalleDecoder(dim=4, **SIZES), image_size=16)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3)).astype(np.uint8)
GAIN = 1 / 4**2  # of four blocks


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return Tensors("encoder.pt", {name: value.shape for name, value in arrays.items()}, arrays.__getitem__)


def variables():
    """Whose convolutions keep the size of what goes through them."""
    rng = np.random.default_rng(1)
    fan_in = lambda shape: np.prod(shape[:-1]) if len(shape) == 4 else shape[-1]
    draw = lambda leaf: (rng.standard_normal(leaf.shape) * (2 / fan_in(leaf.shape)) ** 0.5).astype(np.float32)
    return jax.tree.map(draw, jax.eval_shape(MODEL.init, jax.random.key(0)))


def network(arrays, x, resize):
    """`blocks` of one of the two, but for the last activation and convolution."""
    torch = peers.torch()
    f = torch.nn.functional

    def conv(x, name):
        w, b = (torch.tensor(arrays[f"blocks.{name}.{kind}"]) for kind in "wb")
        return f.conv2d(x, w, b, padding=w.shape[-1] // 2)

    x = conv(x, "input")
    for group in range(1, 5):
        name, h = f"group_{group}.block_1", x
        for i in range(1, 5):
            h = conv(f.relu(h), f"{name}.res_path.conv_{i}")
        x = (conv(x, f"{name}.id_path") if f"blocks.{name}.id_path.w" in arrays else x) + GAIN * h
        x = resize(x) if group < 4 else x
    return conv(f.relu(x), "output.conv")


def test_codes_and_pixels():
    torch = peers.torch()
    f, ours = torch.nn.functional, variables()
    encoder, decoder = dalle.write(MODEL, ours)
    pixels = torch.tensor(0.8 * (IMAGES / np.float32(255)).transpose(0, 3, 1, 2) + np.float32(0.1))
    codes = network(encoder, pixels, lambda x: f.max_pool2d(x, 2)).argmax(1)
    assert len(codes.unique()) > 1
    np.testing.assert_array_equal(jax.jit(MODEL.encode_tokens)(ours, IMAGES), codes.numpy())
    decoder["blocks.input.b"] = np.linspace(-1, 1, 4, dtype=np.float32)
    again = dalle.read(MODEL, tensors(encoder), tensors(decoder))
    chosen = f.one_hot(codes, 7).permute(0, 3, 1, 2).float()
    expected = network(decoder, chosen, lambda x: f.interpolate(x, scale_factor=2)).permute(0, 2, 3, 1).numpy()
    found = jax.jit(MODEL.decode_tokens)(again, codes.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_there_and_back():
    ours = variables()
    encoder, decoder = dalle.write(MODEL, ours)
    assert encoder["blocks.output.conv.w"].shape == (7, 32, 1, 1) and decoder["blocks.input.w"].shape == (4, 7, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, dalle.read(MODEL, tensors(encoder), tensors(decoder)), ours)


def test_what_does_not_fit():
    encoder, decoder = (tensors(arrays) for arrays in dalle.write(MODEL, variables()))
    other = Autoencoder(MODEL.encoder, Gumbel(size=9), MODEL.decoder, image_size=16)
    with pytest.raises(UserError, match=r"blocks.output.conv.w \[7, 32, 1, 1\] where \[9, 32, 1, 1\] is wanted"):
        dalle.read(other, encoder, decoder)
    with pytest.raises(UserError, match="this model's bottleneck is FSQ"):
        dalle.read(Autoencoder(MODEL.encoder, FSQ((5, 3)), MODEL.decoder, image_size=16), encoder, decoder)
