import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.nn.crops import random_crops

KEYS = jax.random.split(jax.random.key(0), 3)
ROWS, COLS = np.mgrid[:32, :48].astype(np.float32)
IMAGE = np.broadcast_to(np.stack([ROWS, COLS], axis=-1), (3, 32, 48, 2))


def crops(area, aspect=(3 / 4, 4 / 3), keys=KEYS, size=8):
    return jax.jit(lambda: random_crops(IMAGE, keys, count=50, size=size, area=area, aspect=aspect))()


def test_boxes_are_inside_and_of_the_area_and_shape_that_is_asked_for():
    """Pixels say where they come from: their steps are the box's sides, and their mean its middle."""
    found = np.asarray(crops((0.1, 0.4)), np.float64)
    assert found.shape == (3, 50, 8, 8, 2)
    height = 8 * np.diff(found[..., 0], axis=2)[:, :, 2:5].mean((2, 3))
    width = 8 * np.diff(found[..., 1], axis=3)[:, :, :, 2:5].mean((2, 3))
    area = height * width / (32 * 48)
    assert 0.09 < area.min() < 0.16 and 0.34 < area.max() < 0.41
    ratio = width / height
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.4
    middle = found.mean((2, 3)) + 0.5
    for k, (side, most) in enumerate(((height, 32), (width, 48))):
        assert (middle[..., k] - side / 2 > -0.5).all() and (middle[..., k] + side / 2 < most + 0.5).all()
        assert middle[..., k].std() > 1


def test_the_whole_image():
    found = crops((1.0, 1.0), aspect=(1.5, 1.5), size=16)
    whole = jax.image.resize(IMAGE[0], (16, 16, 2), "linear")
    np.testing.assert_allclose(found, jnp.broadcast_to(whole, found.shape), atol=1e-3)


def test_a_row_depends_on_its_own_key():
    again = crops((0.1, 0.4), keys=KEYS[jnp.array([0, 2, 1])])
    found = crops((0.1, 0.4))
    np.testing.assert_array_equal(again[0], found[0])
    assert np.abs(again[1] - found[1]).max() > 1
