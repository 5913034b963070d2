"""Errors and codes of reconstructions that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluate.toy import IMAGE, Source
from vlm_jax.errors import UserError
from vlm_jax.evaluate.reconstructions import Reconstructions, errors, usage
from vlm_jax.mesh import Layout

IMAGES = np.random.default_rng(0).integers(0, 240, (11, 4, 4, 3), np.uint8)
IMAGES[3, 0, 0] = 0


def mesh(devices=1):
    return Layout().make(jax.devices()[:devices])


def brighter(image):
    """Each image is off by a sixteenth of its own first byte."""
    return image + image[:, :1, :1, :1] // 16


def discrete(stages=()):
    codes = lambda image: (image[:, ::2, ::2, 0] // 64).astype(jnp.int32)
    several = lambda image: jnp.stack([codes(image) * stage for stage in stages], -1)
    tokens = jax.jit(several if stages else codes)
    return {"reconstruct": jax.jit(brighter), "tokens": tokens, "vocab_size": lambda: 8}


CONTINUOUS = {
    "reconstruct": jax.jit(brighter),
    "latents": jax.jit(lambda image: image.astype(jnp.float32)),
    "images": jax.jit(lambda latents: jnp.round(latents).astype(jnp.uint8)),
}


def evaluate(predict, devices=1, **options):
    source = Source(tuple({"image": image} for image in IMAGES))
    return Reconstructions(source=source, image=IMAGE, **options)(predict, mesh(devices))


def test_errors_are_those_of_the_formulas():
    result = evaluate(CONTINUOUS)
    off = IMAGES[:, 0, 0, 0] // 16 / 255
    assert 0 in off and result["examples"] == 11
    assert result["l1"] == pytest.approx(off.mean()) and result["mse"] == pytest.approx((off**2).mean())
    least = 1 / (255**2 * 48)  # an image without error counts as off by one step of one subpixel
    psnr = -10 * np.log10(np.maximum(off**2, least))
    assert result["psnr"] == pytest.approx(psnr.mean())
    rows = result.rows["images"]
    np.testing.assert_allclose(rows["psnr"], psnr)
    assert rows["index"].tolist() == list(range(11))


def test_the_error_of_black_for_white():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert {name: x.tolist() for name, x in errors(black, white).items()} == {"mse": [1], "l1": [1], "psnr": [0]}


@pytest.mark.parametrize("devices, batch_size", [(8, 3), (1, 4)])
def test_any_batch_size_and_devices_give_the_same(devices, batch_size):
    for predict in (CONTINUOUS, discrete()):
        one, other = evaluate(predict), evaluate(predict, devices, batch_size=batch_size)
        assert dict(one) == dict(other)
        assert all((one.rows["images"][name] == x).all() for name, x in other.rows["images"].items())
        for name, gallery in one.artifacts.items():
            for (heading, pictures), (heading2, pictures2) in zip(gallery.rows, other.artifacts[name].rows):
                assert heading == heading2 and len(pictures) == len(pictures2)
                assert all((a[0] == b[0]).all() and a[1:] == b[1:] for a, b in zip(pictures, pictures2))


def test_codes_of_all_images_are_counted_together():
    result = evaluate(discrete(), batch_size=2)
    share = np.bincount((IMAGES[:, ::2, ::2, 0] // 64).ravel()) / (11 * 4)
    assert len(share) == 4 and result["codes_used"] == 0.5
    assert result["perplexity"] == pytest.approx(np.prod(share**-share))
    assert result["bits"] == 4 * 3
    assert set(result.artifacts) == {"reconstructions"}


def test_of_several_stages_each_has_a_codebook():
    result = evaluate(discrete(stages=(1, 0)))
    one = evaluate(discrete())
    assert result["codes_used"] == (4 / 8 + 1 / 8) / 2 and result["bits"] == 2 * one["bits"]
    assert result["perplexity"] == pytest.approx((one["perplexity"] + 1) / 2)


def test_codes_that_are_used_alike():
    found = usage(np.arange(16).reshape(4, 2, 2), 16)
    assert found == {"codes_used": 1, "perplexity": pytest.approx(16), "bits": 16}


def test_pictures_are_images_above_what_became_of_them_and_points_between_them():
    result = evaluate(CONTINUOUS, shown=5, between=3, batch_size=2)
    (_, before), (_, after) = result.artifacts["reconstructions"].rows
    assert len(before) == len(after) == 5
    assert all((image == expected).all() for (image, *_), expected in zip(before, IMAGES))
    assert all((image == expected).all() for (image, *_), expected in zip(after, np.asarray(brighter(IMAGES))))
    lines = result.artifacts["interpolations"].rows
    assert [heading for heading, _ in lines] == ["from image 0 to image 1", "from image 2 to image 3"]
    start, middle, end = (image for image, *_ in lines[1][1])
    assert (start == IMAGES[2]).all() and (end == IMAGES[3]).all()
    assert (middle == np.round((IMAGES[2] + IMAGES[3].astype(np.float32)) / 2)).all()


def test_codes_have_points_between_their_vectors():
    result = evaluate(CONTINUOUS | discrete(), between=3)
    lines, expected = (found.artifacts["interpolations"].rows for found in (result, evaluate(CONTINUOUS, between=3)))
    assert len(lines) == 4 and result["bits"] == 4 * 3
    for (_, ours), (_, theirs) in zip(lines, expected):
        assert all((a[0] == b[0]).all() for a, b in zip(ours, theirs))


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="gives no 'reconstruct'"):
        evaluate({"image_embedding": None})
    with pytest.raises(UserError, match="between=1"):
        evaluate(CONTINUOUS, between=1)
