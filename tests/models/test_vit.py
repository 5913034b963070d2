import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.errors import UserError
from vlm_jax.models.vit import ViT, drop_patches

TINY = ViT(width=16, depth=2, num_heads=2, patch_size=4, image_size=16, dtype="float32")
IMAGE = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))


@pytest.fixture
def apply(parameters):
    def run(model, image=IMAGE, **options):
        return jax.jit(lambda params, image: model.apply(params, image, **options))(parameters(model), image)

    return run


@pytest.mark.parametrize("pool", ["cls", "gap", "map"])
@pytest.mark.parametrize("out_dim", [None, 6])
def test_one_vector_an_image_and_its_taps(pool, out_dim):
    model = dataclasses.replace(TINY, pool=pool, out_dim=out_dim)
    tokens = 16 + (pool == "cls")
    params = jax.eval_shape(model.init, jax.random.key(0))
    out, aux = jax.eval_shape(functools.partial(model.apply, taps=model.tap_names), params, IMAGE)
    assert out.shape == (8, model.dim) == (8, out_dim or 16)
    assert set(aux["taps"]) == {"embed", "blocks/00", "blocks/01", "ln_post", "pool"}
    shapes = {name: tap.shape for name, tap in aux["taps"].items()}
    assert shapes.pop("pool") == (8, 16) and set(shapes.values()) == {(8, tokens, 16)}


def test_pools(apply):
    for pool, reduce in (("cls", lambda tokens: tokens[:, 0]), ("gap", lambda tokens: tokens.mean(axis=1))):
        out, aux = apply(dataclasses.replace(TINY, pool=pool), taps=("ln_post",))
        np.testing.assert_allclose(out, reduce(aux["taps"]["ln_post"]), atol=1e-6)


def test_parts_of_the_parameters():
    params = jax.eval_shape(TINY.init, jax.random.key(0))
    assert set(params) == {"embed", "blocks", "ln_post", "pool"}
    assert TINY.stacks == {}
    clip = dataclasses.replace(TINY, pool="cls", pre_norm=True, patch_bias=False, out_dim=4, head_bias=False, scan=True)
    params = jax.eval_shape(clip.init, jax.random.key(0))
    assert set(params) == {"embed", "ln_pre", "blocks", "ln_post", "head"}
    assert set(params["head"]) == set(params["embed"]["patch"]) == {"kernel"}
    assert clip.stacks == {"blocks": 2}


def test_a_larger_image_uses_the_same_parameters(apply):
    model = dataclasses.replace(TINY, pool="gap")
    image = jax.image.resize(IMAGE, (8, 24, 32, 3), "bilinear")
    assert apply(model, image)[0].shape == (8, 16)


def test_unknown_taps_name_the_nearest(parameters):
    with pytest.raises(UserError, match=r"unknown tap='blocks/1'; did you mean 'blocks/01'"):
        TINY.apply(parameters(TINY), IMAGE, taps=("blocks/1",))


DROP = dataclasses.replace(TINY, patch_dropout=0.75)


def test_patch_dropout_keeps_the_right_number_and_always_cls(apply):
    for pool, kept in (("gap", 4), ("cls", 5)):
        model = dataclasses.replace(DROP, pool=pool)
        whole = apply(model, taps=("embed",))[1]["taps"]["embed"]
        some = apply(model, train=True, key=jax.random.key(3), taps=("embed",))[1]["taps"]["embed"]
        assert whole.shape[1] == 16 + (pool == "cls") and some.shape[1] == kept
        index = [[int(np.flatnonzero((w == t).all(axis=-1))[0]) for t in row] for w, row in zip(whole, some)]
        assert all(row == sorted(set(row)) for row in index)  # no patch twice, in their order
        assert len({tuple(row) for row in index}) > 4  # not the same for every image
        if pool == "cls":
            assert all(row[0] == 0 for row in index)


def test_patch_dropout_needs_a_key_in_training_only(apply, parameters):
    with pytest.raises(UserError, match="patch_dropout needs a key"):
        DROP.apply(parameters(DROP), IMAGE, train=True)
    np.testing.assert_array_equal(apply(DROP)[0], apply(DROP, key=jax.random.key(3))[0])


def test_every_patch_is_kept_equally_often():
    x = jnp.broadcast_to(jnp.eye(10), (4000, 10, 10))
    kept = drop_patches(x, 0.7, jax.random.key(0))
    assert kept.shape == (4000, 3, 10)
    np.testing.assert_allclose(kept.sum(axis=1).mean(axis=0), np.full(10, 0.3), atol=0.04)


def test_patch_dropout_depends_on_the_row_and_not_on_the_devices():
    drop = jax.jit(lambda x: drop_patches(x, 0.5, jax.random.key(0), prefix=1))
    x = jax.random.normal(jax.random.key(1), (16, 9, 4))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(drop(x), drop(sharded))
    np.testing.assert_array_equal(drop(x)[:4], drop(x[:4]))  # nor on how many rows follow
    communication = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not any(kind in drop.lower(sharded).compile().as_text() for kind in communication)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "b"}, "unknown size='b'; valid choices"),
        ({"size": "So400"}, "unknown size='So400'; did you mean 'So400m'?"),
        ({"pool": "gab"}, "unknown pool='gab'; did you mean 'gap'?"),
        ({"posemb": "sincos"}, "unknown posemb='sincos'; did you mean 'sincos2d'?"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"remat": "blocks"}, "did you mean 'block'"),
        ({"dtype": "bf16"}, "unknown dtype='bf16'"),
        ({"init_style": "jaxx"}, "did you mean 'jax'"),
        ({"image_size": 225}, "image_size=225 is not divisible by patch_size=16"),
        ({"patch_size": 4, "stem_channels": (8, 8, 8)}, "patch_size=4 is not divisible by 8"),
        ({"width": 100, "num_heads": 3}, "width=100 is not divisible by num_heads=3"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"width": 6, "posemb": "sincos2d"}, "needs a width divisible by 4, not 6"),
        ({"patch_dropout": 1.0}, "patch_dropout=1.0 is not a fraction"),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError) as error:
        ViT(**fields)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_masked_patches_are_a_vector_at_their_places(pool, apply):
    model = dataclasses.replace(TINY, pool=pool)
    where = jax.random.bernoulli(jax.random.key(3), 0.5, (8, 16))
    options = {"masked": (jnp.arange(16.0), where), "taps": ("embed",)}
    _, aux = apply(model, **options)
    blank = jnp.repeat(jnp.repeat(where.reshape(8, 4, 4), 4, axis=1), 4, axis=2)
    _, blanked = apply(model, image=jnp.where(blank[..., None], 7.0, IMAGE), **options)
    np.testing.assert_allclose(aux["taps"]["embed"], blanked["taps"]["embed"], atol=1e-5)
    patches = lambda aux: aux["taps"]["embed"][:, pool == "cls" :]
    shown = patches(apply(model, taps=("embed",))[1])
    np.testing.assert_allclose(patches(aux)[~where], shown[~where], atol=1e-6)
    assert (np.abs(patches(aux)[where] - shown[where]).max(1) > 0.1).all()
