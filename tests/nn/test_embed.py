import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlm_jax.errors import UserError
from vlm_jax.mesh import Layout
from vlm_jax.nn import shard
from vlm_jax.nn.embed import ConvStem, ImageEmbed, PatchProjection, TextEmbed, take_rows
from vlm_jax.nn.functional import Functional
from vlm_jax.nn.initializers import initializers
from vlm_jax.nn.layers import repeat
from vlm_jax.plan import hlo

from .random_parameters import random_parameters

INIT = initializers("jax", width=8, depth=2)
IMAGE = jax.random.normal(jax.random.key(7), (2, 8, 12, 3))


def image_embed(**options):
    options = {
        "patch_size": 4,
        "grid": 2,
        "stem_channels": (),
        "posemb": "learn",
        "cls_token": False,
        "bias": True,
        "dtype": "float32",
        **options,
    }
    return Functional(ImageEmbed, 8, **options, init=INIT)


def test_patch_projection_is_the_convolution_of_its_kernel():
    patch = Functional(PatchProjection, 4, 3, 8, bias=True, dtype="float32")
    params = random_parameters(patch) | {"bias": jnp.arange(8.0)}
    dimensions = ("NHWC", "HWIO", "NHWC")
    conv = jax.lax.conv_general_dilated(IMAGE, params["kernel"], (4, 4), "VALID", dimension_numbers=dimensions)
    np.testing.assert_allclose(patch(params, IMAGE), conv + params["bias"], atol=1e-5)


def test_stem_halves_the_image_at_each_convolution():
    stem = Functional(ConvStem, (6, 10), dtype="float32")
    params = jax.eval_shape(stem.init, jax.random.key(0))
    assert jax.eval_shape(stem, params, IMAGE).shape == (2, 2, 3, 10)


@pytest.mark.parametrize("stem", [(), (6,), (6, 10)])
@pytest.mark.parametrize("cls", [False, True])
def test_tokens_of_any_image_that_patches_divide(stem, cls):
    embed = image_embed(stem_channels=stem, cls_token=cls)
    params = jax.eval_shape(embed.init, jax.random.key(0))
    assert params["posemb"].shape == (4 + cls, 8)
    assert jax.eval_shape(embed, params, IMAGE).shape == (2, 2 * 3 + cls, 8)  # positions are resampled from 2 x 2


def test_positions_are_added_to_their_patches():
    embed = image_embed(grid=3)
    params = random_parameters(embed)
    zero = embed(jax.tree.map(jnp.zeros_like, params) | {"posemb": params["posemb"]}, jnp.ones((1, 12, 12, 3)))
    np.testing.assert_array_equal(zero[0], params["posemb"])


def test_sincos_has_no_parameters_and_leaves_cls_alone():
    embed = image_embed(posemb="sincos2d", cls_token=True)
    params = random_parameters(embed)
    assert set(params) == {"patch", "cls"}
    out = embed(jax.tree.map(jnp.zeros_like, params) | {"cls": jnp.arange(8.0)}, IMAGE)
    np.testing.assert_array_equal(out[0, 0], jnp.arange(8.0))
    assert len(np.unique(out[0, 1:], axis=0)) == 6


def test_an_image_that_patches_do_not_divide():
    embed = image_embed()
    with pytest.raises(UserError, match="8 x 10 is not divisible by patch_size=4"):
        embed(random_parameters(embed), IMAGE[:, :, :10])


@pytest.fixture
def text():
    embed = Functional(TextEmbed, 10, 4, 8, dtype="bfloat16", init=INIT)
    return embed, random_parameters(embed)


def test_tokens_and_positions(text):
    embed, params = text
    out = embed(params, jnp.array([[3, 9]]))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0], (params["token"][jnp.array([3, 9])] + params["posemb"][:2]), rtol=1e-2)


def test_an_id_outside_the_vocabulary_is_nan(text):
    embed, params = text
    out = jax.jit(embed)(params, jnp.array([[3, 10]]))
    assert np.isfinite(out[0, 0]).all() and np.isnan(out[0, 1]).all()


def test_the_gradient_of_a_frequent_token_is_summed_in_f32(text):
    embed, params = text
    ids = jnp.full((1024, 1), 3)  # a bf16 sum of ones stops growing at 256
    grad = jax.grad(lambda params: embed(params, ids).astype(jnp.float32).sum())(params)
    np.testing.assert_array_equal(grad["token"][3], np.full(8, 1024))


def test_a_text_longer_than_the_model(text):
    embed, params = text
    with pytest.raises(UserError, match="5 tokens are longer than the model's length=4"):
        embed(params, jnp.zeros((1, 5), jnp.int32))


def test_what_is_repeated_gets_its_gradient_in_f32():
    """Sums of bf16 rows in bf16 would stop growing at 256 ones."""
    x = jnp.ones((3, 8))
    assert repeat(x, 1000, "bfloat16").dtype == jnp.bfloat16
    grad = jax.grad(lambda x: repeat(x, 1000, "bfloat16").sum(axis=(1, 2)).astype(jnp.float32).sum())(x)
    np.testing.assert_array_equal(grad, 1000 * np.ones((3, 8), np.float32))


@pytest.mark.parametrize("vocab", [64, 8], ids=["rows are exchanged", "the table is gathered"])
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_rows_of_a_table_that_rests_in_parts(axes, vocab):
    mesh = Layout(**axes).make(jax.devices())
    table = jax.random.normal(jax.random.key(0), (vocab, 16))
    ids = jax.random.randint(jax.random.key(1), (16, 5), 0, 8).at[3, 2].set(vocab)
    cotangent = jax.random.normal(jax.random.key(2), (16, 5, 16))

    def rows_and_gradient(table, ids, cotangent):
        rows, pull = jax.vjp(lambda table: take_rows(table, ids, "float32"), table)
        return rows, pull(cotangent)[0]

    def over_devices(*arguments):
        with shard.under(mesh):
            return rows_and_gradient(*arguments)

    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    split, batch = jax.jit(over_devices), ("data", "fsdp")
    found = split(put(table, "tensor", "fsdp"), put(ids, batch), put(cotangent, batch))
    for a, b in zip(found, rows_and_gradient(table, ids, cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert np.isnan(found[0][3, 2]).all() and tuple(found[1].sharding.spec) == ("tensor", "fsdp")
    sent = hlo.read(split.lower(put(table, "tensor", "fsdp"), put(ids, batch), put(cotangent, batch)).compile())
    assert ("all-to-all" in sent.by_kind()) == (vocab == 64)
